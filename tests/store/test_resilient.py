"""A store that fails for the moment, made usable: the whole contract holds, with one request in three answered 503."""

from __future__ import annotations

import logging
import math
import random
import uuid
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.errors import KeyNotFoundError, StoreAccessError, StoreUnavailableError
from aiodiloco.store import MemoryStore, ResilientStore, Store, resilient
from aiodiloco.testing import Faults, FaultyStore, StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FLAKY = Faults(unavailable=0.3, lost_reply=0.2)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a hundred times shorter."""
    monkeypatch.setattr(resilient, "_FIRST_S", 0.0002)
    monkeypatch.setattr(resilient, "_LONGEST_S", 0.05)


def patient(store: Store, **options: float) -> ResilientStore:
    return ResilientStore(store, jitter=random.Random(0), **options)  # type: ignore[arg-type]  # patience_s


class TestFlakyStore(StoreTests):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with patient(FaultyStore(MemoryStore(uuid.uuid4().hex), FLAKY)) as store:
            yield store

    def open_again(self, store: Store) -> Store:
        return patient(FaultyStore(super().open_again(store), FLAKY, seed="again"))


class Scripted(MemoryStore):
    """Answers each request as a script says: "503", "lost" (done, but 503) or "ok", which it also does at the end."""

    def __init__(self, *script: str) -> None:
        super().__init__()
        self.script = list(script)
        self.num_requests = 0

    def next(self) -> str:
        self.num_requests += 1
        return self.script.pop(0) if self.script else "ok"

    async def put_if_absent(self, key, data):
        answer = self.next()
        written = False if answer == "503" else await super().put_if_absent(key, data)
        if answer != "ok":
            raise StoreUnavailableError(answer)
        return written

    async def get(self, key, **kwargs):
        match self.next():
            case "503":
                raise StoreUnavailableError("503")
            case "denied":
                raise StoreAccessError("denied")
            case "garbled":
                return memoryview(b"garbled")
        return await super().get(key, **kwargs)


@pytest.mark.parametrize(
    "script",
    [
        [],
        ["503"],
        ["lost"],
        ["503", "lost", "503", "lost"],
        ["lost", "ok", "503", "ok"],  # the second write, then a look at the object
        ["lost", "ok", *["garbled"] * 5, "ok"],
    ],
)
async def test_a_write_whose_reply_was_lost_is_this_callers(script):
    objects = Scripted(*script)
    assert await patient(objects).put_if_absent("key", b"mine") is True
    assert bytes(await objects.get("key")) == b"mine"


@pytest.mark.parametrize("script", [[], ["503"], ["lost"], ["lost", "lost"]])
async def test_an_object_of_somebody_else_is_not_this_callers(script):
    objects = Scripted(*script)
    await objects.put("key", b"theirs")
    assert await patient(objects).put_if_absent("key", b"mine") is False
    assert bytes(await objects.get("key")) == b"theirs"


async def test_an_object_equal_to_ones_own_is_not_ones_own_unless_an_attempt_failed():
    objects = Scripted()
    await objects.put("key", b"same")
    assert await patient(objects).put_if_absent("key", b"same") is False


async def test_a_written_object_that_was_deleted_since_is_nobodys():
    class Deleting(Scripted):
        async def get(self, key, **kwargs):
            raise KeyNotFoundError(key)

    assert await patient(Deleting("lost")).put_if_absent("key", b"mine") is False


async def test_other_errors_pass_at_once():
    for script, error in ((["denied"], StoreAccessError), ([], KeyNotFoundError)):
        objects = Scripted(*script)
        with pytest.raises(error):
            await patient(objects).get("key")
        assert objects.num_requests == 1


async def test_a_listing_goes_on_after_the_last_key_it_gave():
    class BreaksOff(MemoryStore):
        async def list(self, prefix="", *, start_after=""):
            num = 0
            async for key in super().list(prefix, start_after=start_after):
                if num == 3:
                    raise StoreUnavailableError("503")
                num += 1
                yield key

    objects = BreaksOff()
    keys = [f"k{i:02}" for i in range(10)]
    for key in keys:
        await objects.put(key, b"")
    assert [key async for key in patient(objects).list("k")] == keys


class Dead(MemoryStore):
    num_requests = 0

    async def get(self, key, **kwargs):
        self.num_requests += 1
        raise StoreUnavailableError("connection refused")


async def test_without_a_bound_only_the_callers_scope_ends_it(monkeypatch):
    monkeypatch.setattr(resilient, "_LONGEST_S", 0.001)
    store = Dead()
    with anyio.move_on_after(0.2) as scope:
        await patient(store).get("key")
    assert scope.cancelled_caught
    assert store.num_requests > 5


async def test_out_of_patience_the_stores_own_error_is_raised():
    store = Dead()
    with anyio.fail_after(20), pytest.raises(StoreUnavailableError, match="connection refused"):
        await patient(store, patience_s=0.05).get("key")
    assert store.num_requests > 1
    with pytest.raises(StoreUnavailableError):
        await patient(store, patience_s=0).get("key")


async def test_pauses_grow_and_are_spread(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(resilient, "_FIRST_S", 0.02)
    monkeypatch.setattr(resilient, "_LONGEST_S", 5.0)
    monkeypatch.setattr(resilient.anyio, "sleep", sleep)
    store = Scripted(*["503"] * 18)
    await store.put("key", b"x")
    await patient(store).get("key")
    for number, seconds in enumerate(slept):
        longest = min(5.0, 0.02 * 1.5**number)
        assert longest / 2 <= seconds <= longest
    assert len(slept) == 18
    assert len({seconds / min(5.0, 0.02 * 1.5**n) for n, seconds in enumerate(slept)}) == 18


async def test_many_requests_failing_for_long_are_one_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(resilient, "_COMPLAIN_AFTER_S", 0.05)
    monkeypatch.setattr(resilient, "_LONGEST_S", 0.01)
    store = patient(Dead("dead"))
    with caplog.at_level(logging.WARNING), anyio.move_on_after(0.4):
        async with anyio.create_task_group() as tg:
            for i in range(20):
                tg.start_soon(store.get, f"k{i}")
    assert [r.getMessage() for r in caplog.records] == [
        "memory://dead has failed for 0 s and is tried again: connection refused"
    ]


@pytest.mark.parametrize("bad", [-1, math.nan])
def test_patience_must_be_a_time(bad):
    with pytest.raises(ValueError, match="patience_s"):
        ResilientStore(MemoryStore(), patience_s=bad)
