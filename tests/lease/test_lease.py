"""The lease: who drives, whether it lives, and that nobody compares clocks."""

from __future__ import annotations

import anyio
import pytest

from aiodiloco.errors import StoreError
from aiodiloco.lease import (
    LeaseDocument,
    LeaseHolder,
    LeaseState,
    LeaseTerms,
    Report,
    lease_key,
    read_lease,
    read_terms,
    watch_lease,
)
from aiodiloco.lease.watch import Silence
from aiodiloco.store import MemoryStore
from tests.run.faulty import FaultyStore

pytestmark = pytest.mark.timeout(20)

_TERMS = LeaseTerms(6.0, 1.0)
_QUICK = LeaseTerms.of(0.6)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def acquired(store, generation=1, *, terms=_TERMS, clock=None, report=Report) -> LeaseHolder:
    holder = await LeaseHolder.acquire(store, terms, generation, report, **({"clock": clock} if clock else {}))
    assert holder is not None
    return holder


@pytest.mark.parametrize(
    ("ttl_s", "beat_s", "says"),
    [
        (0, 1, "ttl_s of a lease must be a finite number of seconds > 0, not 0"),
        (6, float("inf"), "beat_s of a lease"),
        (True, 0.1, "ttl_s of a lease"),
        ("6", 1, "ttl_s of a lease"),
        (6, 2.1, "at least three beats, not 6 s: one lost beat must not end a run"),
    ],
)
def test_bad_terms_are_refused(ttl_s, beat_s, says) -> None:
    with pytest.raises(ValueError, match=says):
        LeaseTerms(ttl_s, beat_s)


def test_six_beats_are_a_time_to_live() -> None:
    assert LeaseTerms.of(60.0) == LeaseTerms(60.0, 10.0)


async def test_beats_are_read_as_they_were_written_and_tell_what_the_next_driver_needs() -> None:
    store = MemoryStore()
    assert await read_lease(store) is None
    holder = await acquired(store, 3, report=lambda: Report(1.5, 12.0, {7: 2}))
    await holder.beat()
    found = await read_lease(store)
    assert found == LeaseDocument(3, 1, holder.holder, _TERMS, 1.5, 12.0, {7: 2}, LeaseState.held)
    await holder.beat(LeaseState.ended)
    found = await read_lease(store)
    assert found is not None
    assert (found.mark, found.state) == ((3, 2), LeaseState.ended)


async def test_the_highest_generation_counts() -> None:
    store = MemoryStore()
    for generation in (9, 10, 2):
        await acquired(store, generation)
    await store.put("lease/readme.txt", b"")
    found = await read_lease(store)
    assert found is not None
    assert found.generation == 10


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"generation": 1, "terms": 2}', b"\xff\x00"])
async def test_something_else_under_a_lease_key_is_an_error_that_names_it(data) -> None:
    store = MemoryStore("no-lease")
    await store.put(lease_key(1), data)
    with pytest.raises(StoreError, match=r"memory://no-lease/lease/00000001.json holds .*, not a lease"):
        await read_lease(store)


@pytest.mark.parametrize(
    ("data", "terms"),
    [
        (None, None),
        (b'{"version": 1, "n_replicas": 2}', None),
        (b'{"lease": null}', None),
        (b'{"lease": {"ttl_s": 6, "beat_s": 1, "binds_replicas": false}}', None),
        (b'{"lease": {"ttl_s": 6, "beat_s": 1, "binds_replicas": true}}', _TERMS),
    ],
)
async def test_replicas_find_their_terms_in_the_record_of_the_run(data, terms) -> None:
    store = MemoryStore()
    if data is not None:
        await store.put("run.json", data)
    assert await read_terms(store) == terms


async def test_a_record_that_is_none_is_an_error() -> None:
    store = MemoryStore()
    for data in (b"{", b"[]", b'{"lease": {}}'):
        await store.put("run.json", data)
        with pytest.raises(StoreError, match="not a run"):
            await read_terms(store)


async def test_a_record_that_came_damaged_is_read_again() -> None:
    class DamagedOnce(MemoryStore):
        damaged = True

        async def get(self, key: str, **where: object) -> memoryview:
            data = await super().get(key, **where)
            part = data[: len(data) // 2] if self.damaged else data
            self.damaged = False
            return part

    store = DamagedOnce()
    await store.put("run.json", b'{"lease": {"ttl_s": 60.0, "beat_s": 10.0, "binds_replicas": true}}')
    assert await read_terms(store) == LeaseTerms(60.0, 10.0)


async def test_one_wins_a_generation() -> None:
    store = MemoryStore()
    won = []

    async def contend() -> None:
        won.append(await LeaseHolder.acquire(store, _TERMS, 1, Report))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(contend)
    assert len([holder for holder in won if holder is not None]) == 1


async def test_a_lost_reply_does_not_lose_the_generation() -> None:
    store = FaultyStore(MemoryStore())
    store.fault = lambda operation, _: "lose" if operation == "put_if_absent" else None
    await acquired(store)


async def test_a_deposed_driver_learns_it_and_writes_nothing_more() -> None:
    store, clock = MemoryStore(), Clock()
    old = await acquired(store, 1, clock=clock)
    assert await old.beat()
    await acquired(store, 2)
    before = bytes(await store.get(lease_key(1)))
    assert not await old.beat()
    assert old.deposed
    assert not await old.confirm()
    assert bytes(await store.get(lease_key(1))) == before


async def test_nothing_is_asked_while_nobody_can_have_taken_over_and_something_after_a_silence() -> None:
    store, clock = FaultyStore(MemoryStore()), Clock()
    holder = await acquired(store, clock=clock)
    asked = store.num_requests
    clock.now += 5.9
    assert await holder.confirm()
    assert store.num_requests == asked
    clock.now += 0.2
    assert await holder.confirm()
    assert store.num_requests > asked
    clock.now += 6.1
    await acquired(store.inner, 2)
    assert not await holder.confirm()


async def test_a_beat_counts_from_when_it_began() -> None:
    """A put that takes long may have been seen long before it returned."""
    store, clock = FaultyStore(MemoryStore()), Clock()
    holder = await acquired(store, clock=clock)

    def take_long(operation, _):
        clock.now += 4.0 if operation == "put" else 0.0

    store.fault = take_long
    assert await holder.beat()
    asked = store.num_requests
    clock.now += 2.1
    assert await holder.confirm()
    assert store.num_requests > asked


async def test_a_store_that_cannot_be_asked_says_neither_yes_nor_no(monkeypatch) -> None:
    monkeypatch.setattr("aiodiloco.lease.holder._ASK_BOUND_S", 0.05)
    store, clock = FaultyStore(MemoryStore()), Clock()
    holder = await acquired(store, clock=clock)
    assert await holder.ask() is True
    clock.now += 7.0
    for kind in ("fail", "hang"):
        store.fault = lambda _operation, _key, kind=kind: kind
        assert await holder.ask() is None
    await acquired(store.inner, 2)
    store.fault = lambda _operation, _key: None
    assert await holder.ask() is False


async def test_beating_goes_on_through_faults_and_ends_when_deposed() -> None:
    store = FaultyStore(MemoryStore())
    holder = await acquired(store, terms=_QUICK)
    faults = iter(["fail", "hang", "lose", *[None] * 1000])
    store.fault = lambda operation, _: next(faults) if operation == "put" else None
    rings = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(holder.keep_beating, lambda: rings.append(None))
        while len(rings) < 6:  # noqa: ASYNC110 - counts what the task does
            await anyio.sleep(0.01)
        found = await read_lease(store.inner)
        assert found is not None
        assert found.beat >= 4
        await store.inner.put(lease_key(2), found.to_json())
    assert holder.deposed


@pytest.mark.parametrize(
    ("looks", "silent_s"),
    [
        ([(0.5, (1, 0))], 0.0),
        ([(0.5, (1, 0)), (1.0, (1, 0))], 0.5),
        ([(0.5, (1, 0)), (1.0, (1, 0)), (1.5, (1, 1))], 0.0),
        ([(0.5, (1, 0)), (1.0, None), (2.0, None)], 1.5),
        ([(0.5, None), (1.0, None)], 1.0),
        ([(0.5, (1, 5)), (1.0, (2, 0))], 0.0),
        ([(0.5, (1, 0)), (500.0, (1, 0))], 1.5),  # was stopped in between, and knows nothing of that time
        ([(0.5, (1, 0)), (500.0, None), (500.5, (1, 0))], 2.0),
    ],
)
def test_how_long_a_lease_was_silent_as_far_as_was_looked(looks, silent_s) -> None:
    silence = Silence(_TERMS, 0.0)
    for now, mark in looks:
        silence.looked(now, mark)
    assert silence.silent_s == silent_s
    assert silence.left_s == 6.0 - silent_s


async def watched(store, *, until=lambda _: False):
    began = anyio.current_time()
    return await watch_lease(store, _QUICK, until=until), anyio.current_time() - began


@pytest.mark.parametrize("kind", ["nothing there", "silent", "fail", "hang", "damaged"])
async def test_a_lease_without_beats_is_stale_after_its_time_to_live(kind) -> None:
    store = FaultyStore(MemoryStore())
    if kind == "silent":
        await acquired(store)
    if kind == "damaged":
        await store.put(lease_key(1), b"?")
    store.fault = lambda _operation, _key: kind
    seen, took_s = await watched(store)
    assert seen.is_stale
    assert (seen.document is not None) == (kind == "silent")
    assert 0.55 <= took_s < 10 * _QUICK.ttl_s


@pytest.mark.parametrize("kind", ["nothing there", "silent"])
async def test_who_must_see_finds_the_same_staleness(kind) -> None:
    store = MemoryStore()
    if kind == "silent":
        await acquired(store)
    seen = await watch_lease(store, _QUICK, until=lambda _: False, must_see=True)
    assert seen.is_stale
    assert (seen.document is not None) == (kind == "silent")


@pytest.mark.parametrize("kind", ["fail", "hang"])
async def test_who_must_see_takes_its_own_blindness_for_no_silence(kind) -> None:
    store = FaultyStore(MemoryStore())
    holder = await acquired(store.inner, terms=_QUICK)
    looks = 0

    def blind_after_the_first_look(_operation, _key) -> str | None:
        nonlocal looks
        looks += 1
        return kind if looks > 3 else None

    store.fault = blind_after_the_first_look
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(holder.keep_beating, lambda: None)
        with pytest.raises(StoreError, match=r"could not be read for 0\.6 s"):
            await watch_lease(store, _QUICK, until=lambda _: False, must_see=True)
        tasks.cancel_scope.cancel()


async def test_a_lease_that_beats_is_not_stale_also_across_generations_and_faults() -> None:
    store = FaultyStore(MemoryStore())
    numbers = iter(range(10_000))
    store.fault = lambda _operation, _key: "fail" if next(numbers) % 3 == 0 else None
    holder = await acquired(store.inner, terms=_QUICK)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(holder.keep_beating, lambda: None)
        with anyio.move_on_after(1.5 * _QUICK.ttl_s):
            await watched(store)
            pytest.fail("found it stale")
        other = await acquired(store.inner, 2, terms=_QUICK)
        tasks.start_soon(other.keep_beating, lambda: None)
        with anyio.move_on_after(1.5 * _QUICK.ttl_s):
            await watched(store)
            pytest.fail("found it stale")
        tasks.cancel_scope.cancel()


async def test_a_watch_ends_at_once_with_what_was_waited_for_also_in_a_new_generation() -> None:
    store = MemoryStore()
    first = await acquired(store)

    async def go_on() -> None:
        await anyio.sleep(_QUICK.beat_s)
        await first.beat()
        await anyio.sleep(_QUICK.beat_s)
        await (await acquired(store, 2)).beat(LeaseState.released)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        seen, _ = await watched(store, until=lambda document: document.state is LeaseState.released)
    assert not seen.is_stale
    assert seen.document is not None
    assert seen.document.generation == 2
