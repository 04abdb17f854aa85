"""`FaultyStore` without faults is the store; with them, it does what the seed says."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.errors import KeyNotFoundError, StoreUnavailableError, StoreUnsupportedError
from aiodiloco.store import MemoryStore, Store, probe
from aiodiloco.testing import Faults, FaultyStore, StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DATA = bytes(range(256)) * 4


class TestWithoutFaults(StoreTests):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with FaultyStore(MemoryStore(uuid.uuid4().hex), Faults()) as store:
            yield store


async def what_happens(store, keys):
    """Return for each key what a fixed sequence of requests came to."""

    async def requests(key):
        found = []
        for _ in range(3):
            for call in (store.put(key, DATA), store.get(key), store.put_if_absent(key, DATA), store.delete(key)):
                try:
                    result = await call
                except (StoreUnavailableError, KeyNotFoundError) as exc:
                    found.append(type(exc).__name__)
                else:
                    found.append(bytes(result) if isinstance(result, memoryview) else result)
        return found

    return {key: await requests(key) for key in keys}


async def test_a_seed_does_the_same_again_whatever_the_order_of_other_requests():
    faults = Faults(unavailable=0.3, lost_reply=0.1, truncated=0.2, flipped=0.2, spoiled=0.1)
    keys = [f"key-{i}" for i in range(20)]
    first, other = FaultyStore(MemoryStore(), faults, seed="a"), FaultyStore(MemoryStore(), faults, seed="b")
    again = FaultyStore(MemoryStore(), faults, seed="a")
    expected = await what_happens(first, keys)
    assert await what_happens(again, reversed(keys)) == expected
    assert await what_happens(other, keys) != expected
    assert again.injected == first.injected


@pytest.mark.parametrize("fault", ["unavailable", "lost_reply", "truncated", "flipped", "spoiled", "stale_list"])
async def test_each_fault_comes_about_as_often_as_asked_for_and_is_counted(fault):
    store = FaultyStore(MemoryStore(), Faults(**{fault: 0.25}))
    for i in range(400):
        await what_happens_once(store, f"k{i}")
    assert {name for name, count in store.injected.items() if count} == {fault}
    num_requests = 1200 if fault == "unavailable" else 400  # put, get and list of each key
    assert 0.2 <= store.injected[fault] / num_requests <= 0.3


async def what_happens_once(store, key):
    for call in (store.put(key, DATA), store.get(key)):
        with contextlib.suppress(StoreUnavailableError, KeyNotFoundError):
            await call
    with contextlib.suppress(StoreUnavailableError):
        [k async for k in store.list(key)]


async def test_an_unavailable_store_did_not_write_and_one_that_lost_its_reply_did():
    for fault, expected in (("unavailable", []), ("lost_reply", ["a", "b"])):
        objects = MemoryStore()
        store = FaultyStore(objects, Faults(**{fault: 1.0}))
        for write in (store.put("a", DATA), store.put_if_absent("b", DATA)):
            with pytest.raises(StoreUnavailableError, match=r"503 .* of '[ab]'"):
                await write
        assert [key async for key in objects.list()] == expected


async def test_damaged_reads_are_shorter_or_differ_in_one_bit_and_the_object_stays_whole():
    objects = MemoryStore()
    await objects.put("a", DATA)
    for into in (None, memoryview(bytearray(len(DATA)))):
        short = await FaultyStore(objects, Faults(truncated=1.0)).get("a", into=into)
        assert len(short) < len(DATA)
        assert DATA.startswith(bytes(short))
        flipped = await FaultyStore(objects, Faults(flipped=1.0)).get("a", into=into)
        assert sum((a ^ b).bit_count() for a, b in zip(flipped, DATA, strict=True)) == 1
        assert bytes(await objects.get("a")) == DATA


async def test_a_spoiled_write_stays_wrong():
    objects, data = MemoryStore(), bytearray(DATA)
    await FaultyStore(objects, Faults(spoiled=1.0)).put("a", data)
    assert bytes(await objects.get("a")) != DATA
    assert data == DATA


async def test_a_listing_breaks_off_in_the_middle():
    objects = MemoryStore()
    for i in range(50):
        await objects.put(f"k{i:02}", b"")
    store = FaultyStore(objects, Faults(unavailable=0.5))
    partial = set()
    for _ in range(100):
        num = 0
        try:
            async for _ in store.list():
                num += 1
        except StoreUnavailableError:
            partial.add(num)
    assert len(partial) > 10


async def test_a_stale_store_is_refused_by_the_probe():
    with pytest.raises(StoreUnsupportedError, match="listing"):
        await probe(FaultyStore(MemoryStore(), Faults(stale_list=1.0)))


async def test_latency_is_slept():
    store = FaultyStore(MemoryStore(), Faults(latency_s=0.05))
    began = anyio.current_time()
    await store.put("a", b"")
    assert anyio.current_time() - began >= 0.025


@pytest.mark.parametrize(
    "bad", [{"flipped": 1.5}, {"unavailable": -0.1}, {"latency_s": -1.0}, {"spoiled": float("nan")}]
)
def test_rates_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Faults(**bad)


async def test_other_keys_are_spared():
    store = FaultyStore(MemoryStore(), Faults(unavailable=1.0, truncated=1.0), only="rounds/")
    await store.put("members/0", DATA)
    assert bytes(await store.get("members/0")) == DATA
    with pytest.raises(StoreUnavailableError):
        await store.put("rounds/0", DATA)
