"""A driver that is gone, and those who come after it."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aiodiloco import RunConflictError, RunNotFoundError, StoreError, WaitAll, attach, launch, reap
from aiodiloco.errors import ExecutorError
from aiodiloco.events import read_events
from aiodiloco.executors import Executor
from aiodiloco.lease import LeaseDocument, LeaseHolder, LeaseState, LeaseTerms, Report, Vacancy, lease_key, read_lease
from aiodiloco.run.journal import Slot, record_call, record_start
from aiodiloco.run.record import RunOutcome, RunRecord, RunResult, read_result, write_record, write_result
from aiodiloco.run.session import Session
from aiodiloco.store import open_store
from aiodiloco.testing import entrypoints

from .faulty import FaultyStore
from .scripted import World, WorldBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.run import Run
    from aiodiloco.store import Store

pytestmark = pytest.mark.timeout(40)

_TTL_S = 0.9


def make_record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "run_id": "a-run",
        "n_replicas": 3,
        "backend_name": "scripted",
        "entrypoint": "aiodiloco.testing.entrypoints:sleep",
        "entrypoint_args": {},
        "gpu": None,
        "replica_timeout_s": 100.0,
        "timeout_s": 60.0,
        "policy": WaitAll(),
        "terms": LeaseTerms.of(_TTL_S),
        "binds_replicas": True,
        "max_gpu_seconds": None,
        "launch_id": "launch-1",
    }
    return RunRecord(**{**fields, **changes})


class Place:
    """The store of one run, what was recorded there, and processes that come and go."""

    def __init__(self, root: str, world: World) -> None:
        self.root = root
        self.uri = f"{root}/runs/a-run"
        self.world = world
        self.store: Store = open_store(self.uri)

    def new_executor(self) -> Executor:
        return Executor(WorldBackend(self.world))

    async def attach(self) -> Run:
        return await attach("a-run", store=self.root, executor=self.new_executor())

    async def launched(self, *, store: Store | None = None, **changes: Any) -> Session:
        """A driver that has launched everything; `crash` ends it."""
        record = await write_record(self.store, make_record(**changes))
        session = Session(self.new_executor(), self.uri, record, store)
        session.begin(Vacancy(None, is_stale=True, silent_s=0.0), is_first=True)
        await session.wait_until_launched()
        return session

    async def half_launched(self, *journaled: int, intended: tuple[Slot, ...] = (), **changes: Any) -> None:
        """What a driver leaves that dies while it launches."""
        record = await write_record(self.store, make_record(**changes))
        await self.beat(1)
        backend = WorldBackend(self.world)
        for rank in journaled:
            handle = await backend.spawn(record.request(rank, 0))
            assert await record_call(self.store, handle, Slot(rank, 0))
        for slot in intended:
            assert await record_start(self.store, slot, "the dead")

    async def beat(self, generation: int, state: LeaseState = LeaseState.held, **fields: Any) -> None:
        document = LeaseDocument(generation, 7, "somebody", LeaseTerms.of(_TTL_S), state=state, **fields)
        await self.store.put(lease_key(generation), document.to_json())

    async def generation(self) -> int:
        document = await read_lease(self.store)
        return 0 if document is None else document.generation

    async def kinds(self) -> list[str]:
        events, _ = await read_events(self.store)
        return [event.kind for event in events]


def crash(session: Session) -> None:
    """End the driver's task where it stands, as nothing but its death does."""
    assert session._job is not None
    session._job.abandon()


@pytest.fixture
async def place(store: str, world: World) -> AsyncIterator[Place]:
    place = Place(store, world)
    async with place.store:
        yield place


async def test_an_attached_run_is_driven_on_once_its_driver_is_gone(place: Place, world: World) -> None:
    crash(await place.launched())
    run = await place.attach()
    assert [handle.call_id for handle in run.handles] == ["0-0", "1-0", "2-0"]
    world.end_all()
    rows = await run.wait()
    assert [row.status for row in rows] == ["succeeded"] * 3
    assert set(world.spawned.values()) == {1}
    assert await place.generation() == 2
    result = await read_result(place.store)
    assert result is not None
    assert result.elapsed_s >= _TTL_S, "the silence counts"
    assert rows == list(result.rows)


async def test_a_living_driver_is_not_replaced_by_those_who_watch(place: Place, world: World) -> None:
    session = await place.launched()
    run = await place.attach()
    with anyio.move_on_after(2 * _TTL_S):
        await run.wait()
    assert await place.generation() == 1
    world.end_all()
    assert await run.wait() == list((await session.wait()).rows)  # type: ignore[union-attr]


async def test_of_several_contenders_one_drives(place: Place, world: World) -> None:
    crash(await place.launched())
    runs = [await place.attach() for _ in range(3)]
    rows: list[Any] = []

    async def wait(run: Run) -> None:
        rows.append(await run.wait())

    async with anyio.create_task_group() as tasks:
        for run in runs:
            tasks.start_soon(wait, run)
        while await place.generation() < 2:
            await anyio.sleep(0.02)
        world.end_all()
    assert rows[0] == rows[1] == rows[2]
    assert (await place.kinds()).count("taken_over") == 1
    assert await place.generation() == 2


async def test_a_launch_that_was_cut_short_is_completed_and_nothing_is_started_twice(
    place: Place, world: World
) -> None:
    await place.half_launched(0, 1)
    run = await place.attach()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.wait)
        await world.wait_for("2-1")
        assert world.living == ["0-0", "1-0", "2-1"]
        world.end_all()
    assert set(world.spawned.values()) == {1}
    result = await read_result(place.store)
    assert result is not None
    assert result.outcome == "succeeded"
    unknown = next(one.row for one in result.attempts if (one.row.rank, one.incarnation) == (2, 0))
    assert (unknown.status, unknown.error) == (
        "failed",
        "its driver died while starting it, so nobody knows whether it ran",
    )


async def test_the_lease_tells_which_ranks_were_started_again(place: Place, world: World) -> None:
    """So that a process of which nobody knew ends itself."""
    await place.half_launched(0, 1, intended=(Slot(1, 1),))
    run = await place.attach()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.wait)
        await world.wait_for("2-1", "1-2")
        while (document := await read_lease(place.store)) is None or document.incarnations != {1: 2, 2: 1}:
            await anyio.sleep(0.02)
        world.end_all()


async def test_a_spawn_that_is_journaled_after_the_takeover_is_ended_by_who_made_it(place: Place, world: World) -> None:
    """A driver that was stopped in the middle of a launch, and wakes up when another has completed it."""
    go_on = anyio.Event()

    async def dawdle(call_id: str) -> None:
        if call_id == "2-0":
            await go_on.wait()

    record = await write_record(place.store, make_record())
    backend = WorldBackend(world)
    backend.after_spawn = dawdle
    old = Session(Executor(backend), place.uri, record)
    old.begin(Vacancy(None, is_stale=True, silent_s=0.0), is_first=True)
    await world.wait_for("0-0", "1-0", "2-0")
    crash(old)  # what it had begun goes on: it was not killed, only stopped
    run = await place.attach()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.wait)
        await world.wait_for("2-1")
        go_on.set()
        while "2-0" in world.living:
            await anyio.sleep(0.01)
        assert world.living == ["0-0", "1-0", "2-1"]
        world.end_all()


async def test_a_launch_that_another_driver_took_over_meanwhile_is_watched_and_is_no_error(
    place: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, and its own launch fails when it wakes up: its block is entered as on attaching."""
    now, terms = [0.0], LeaseTerms.of(60.0)  # so that no beat tells it before
    acquire = functools.partial(LeaseHolder.acquire, clock=lambda: now[0])
    monkeypatch.setattr("aiodiloco.run.session.LeaseHolder.acquire", acquire)
    record = await write_record(place.store, make_record(terms=terms))
    backend = WorldBackend(world)

    async def be_stopped_and_deposed(_: str) -> None:
        now[0] = terms.ttl_s + 1
        await LeaseHolder.acquire(place.store, terms, 2, Report)
        raise ExecutorError("the connection broke meanwhile")

    backend.before_spawn = be_stopped_and_deposed
    session = Session(Executor(backend), place.uri, record)
    session.begin(Vacancy(None, is_stale=True, silent_s=0.0), is_first=True)
    await session.wait_until_launched()
    result = RunResult("a-run", RunOutcome.succeeded, "done by the other driver", (), (), 1.0, 0.0)
    assert await write_result(place.store, result) == await session.wait() == result


async def test_a_driver_that_was_deposed_touches_nothing_not_even_when_it_is_left(
    place: Place, world: World, executor: Executor
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with launch(
            executor, entrypoints.sleep, 3, store=place.root, run_id="a-run", timeout=60, lease=_TTL_S
        ) as run:
            await place.beat(2)
            while (await run.status()).generation < 2 or run._session._is_driving:
                await anyio.sleep(0.02)
            _ = 1 / 0
    assert world.living == ["0-0", "1-0", "2-0"]
    assert not any(replica.cancels for replica in world.replicas.values())
    await reap(place.root, executor)
    assert not world.living


async def test_a_driver_that_was_deposed_drives_again_when_the_other_falls_silent(place: Place, world: World) -> None:
    session = await place.launched()
    await place.beat(2)
    while await place.generation() < 3:
        await anyio.sleep(0.02)
    assert world.living == ["0-0", "1-0", "2-0"]
    world.end_all()
    result = await session.wait()
    assert result is not None
    assert result.outcome == "succeeded"
    assert set(world.spawned.values()) == {1}


async def test_a_living_driver_obeys_a_cancel_from_elsewhere(place: Place, world: World) -> None:
    session = await place.launched()
    rows = await (await place.attach()).cancel()
    assert [row.error for row in rows] == ["cancelled: cancel() was called"] * 3
    assert not world.living
    assert await place.generation() == 1
    await session.wait()


async def test_cancelling_a_run_without_a_driver_takes_over_and_ends_it(place: Place, world: World) -> None:
    await place.half_launched(0, 1)
    rows = await (await place.attach()).cancel()
    assert [row.status for row in rows] == ["cancelled", "cancelled", "failed"]
    assert sorted(world.spawned) == ["0-0", "1-0"], "nothing is started only to be cancelled"


async def test_cancelling_does_not_wait_for_an_image_that_is_being_built(place: Place, world: World) -> None:
    async def build(_: str) -> None:
        building.set()
        await anyio.sleep_forever()

    building = anyio.Event()
    backend = WorldBackend(world)
    backend.before_prepare = build
    await place.half_launched(0, 1)
    run = await attach("a-run", store=place.root, executor=Executor(backend))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.wait)
        await building.wait()
        rows = await run.cancel()
    assert [row.status for row in rows] == ["cancelled", "cancelled", "pending"]
    assert rows[2].error == "never started: cancel() was called"


async def test_who_no_longer_waits_lets_go_so_that_another_drives_at_once(place: Place, world: World) -> None:
    crash(await place.launched(terms=LeaseTerms.of(_TTL_S)))
    run = await place.attach()
    with anyio.move_on_after(60) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.wait)
            while await place.generation() < 2:
                await anyio.sleep(0.02)
            scope.cancel()
    document = await read_lease(place.store)
    assert document is not None
    assert (document.generation, document.state) == (2, LeaseState.released)
    assert world.living == ["0-0", "1-0", "2-0"]
    world.end_all()
    again = await place.attach()
    with anyio.fail_after(_TTL_S * 0.9):
        await again.wait()
    assert await place.generation() == 3


@pytest.mark.parametrize(
    ("limits", "said", "reason"),
    [
        ({"timeout_s": 60.0}, {"elapsed_s": 59.5}, "the run's timeout of 60 s passed"),
        ({"max_gpu_seconds": 100.0}, {"spent_gpu_s": 99.0}, "the run's budget of 100 GPU seconds is spent"),
    ],
)
async def test_deadline_and_budget_go_on_where_the_last_driver_was(
    place: Place, limits: dict[str, Any], said: dict[str, Any], reason: str
) -> None:
    await place.half_launched(0, 1, 2, **limits)
    await place.beat(1, **said)
    rows = await (await place.attach()).wait()
    assert [row.error for row in rows] == [f"cancelled: {reason}"] * 3


async def test_a_store_that_fails_for_less_than_the_lease_lasts_disturbs_nothing(place: Place, world: World) -> None:
    faulty = FaultyStore(place.store)
    session = await place.launched(store=faulty)
    for kind in ("fail", "hang", "lose"):
        before = faulty.num_requests
        faulty.fault = lambda operation, key, kind=kind: kind if "lease/" in key or key == "cancel.json" else None
        while faulty.num_requests < before + 2:
            await anyio.sleep(0.01)
        faulty.fault = lambda _operation, _key: None
    run = await place.attach()
    with anyio.move_on_after(_TTL_S):
        await run.wait()
    assert await place.generation() == 1
    world.end_all()
    result = await session.wait()
    assert result is not None
    assert result.outcome == "succeeded"


async def test_a_replica_whose_journal_entry_cannot_be_written_is_cancelled(
    place: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiodiloco.run.journal._PAUSE_S", 0.001)
    faulty = FaultyStore(place.store)
    faulty.fault = lambda _operation, key: "fail" if key == "calls/1-0.json" else None
    with pytest.raises(Exception, match=r"rank 1 could not be started: put_if_absent calls/1-0\.json: 503"):
        await place.launched(store=faulty)
    assert not world.living


async def test_a_lost_reply_loses_neither_the_generation_nor_a_call_nor_a_result(place: Place, world: World) -> None:
    faulty = FaultyStore(place.store)
    faulty.fault = lambda operation, _key: "lose" if operation == "put_if_absent" else None
    session = await place.launched(store=faulty)
    assert world.living == ["0-0", "1-0", "2-0"]
    world.end_all()
    result = await session.wait()
    assert result is not None
    assert result.outcome == "succeeded"


async def test_a_result_that_cannot_be_written_is_an_error_that_says_how_the_run_ended(
    place: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiodiloco.run.driver._RESULT_BOUND_S", 0.1)
    faulty = FaultyStore(place.store)
    faulty.fault = lambda _operation, key: "fail" if key == "result.json" else None
    session = await place.launched(store=faulty)
    world.end_all()
    with pytest.raises(StoreError, match=r"run a-run has ended \(every replica has ended\), and its result could not"):
        await session.wait()


async def test_attaching_to_nothing_or_with_another_backend_is_refused(place: Place) -> None:
    with pytest.raises(RunNotFoundError, match="no run 'a-run' under memory://"):
        await place.attach()
    await write_record(place.store, make_record(backend_name="modal"))
    with pytest.raises(RunConflictError, match="runs on the 'modal' backend"):
        await place.attach()
    await place.store.put("run.json", b'{"version": 1, "n_replicas": 2}')
    with pytest.raises(StoreError, match="a run whose replicas were started by hand"):
        await place.attach()


async def test_reaping_ends_what_has_no_driver_and_nothing_else(place: Place, world: World) -> None:
    crash(await place.launched())
    others = {
        "by-hand": b'{"version": 1, "n_replicas": 2}',
        "elsewhere": make_record(run_id="elsewhere", backend_name="modal"),
        "unbound": make_record(run_id="unbound", binds_replicas=False),
    }
    async with open_store(place.root) as root:
        for run_id, record in others.items():
            if isinstance(record, bytes):
                await root.put(f"runs/{run_id}/run.json", record)
            else:
                await write_record(open_store(f"{place.root}/runs/{run_id}"), record)
            await root.put(f"runs/{run_id}/rounds/1/2", b"")
    living = world.living
    async with launch(
        place.new_executor(), entrypoints.sleep, 1, store=place.root, run_id="living", timeout=60, lease=_TTL_S
    ):
        world.spawned["0-0"] = 1
        with contextlib.suppress(KeyError):
            results = await reap(place.root, place.new_executor())
        world.end_all()
    assert living == ["0-0", "1-0", "2-0"]
    assert [result.run_id for result in results] == ["a-run"]
    assert results[0].reason == "reaped: its driver was gone"
    assert await reap(place.root, place.new_executor()) == []


async def test_reaping_ends_an_unbound_run_when_it_is_named(place: Place, world: World) -> None:
    crash(await place.launched(binds_replicas=False))
    assert await reap(place.root, place.new_executor()) == []
    [result] = await reap(place.root, place.new_executor(), run_id="a-run")
    assert [row.status for row in result.rows] == ["cancelled"] * 3
    assert not world.living


async def test_of_several_reapers_one_ends_a_run(place: Place, world: World) -> None:
    crash(await place.launched())
    found: list[Any] = []

    async def reap_it() -> None:
        found.extend(await reap(place.root, place.new_executor()))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(reap_it)
    assert [result.run_id for result in found] == ["a-run"]
    assert not world.living


async def test_reaping_what_is_not_there_is_an_error(place: Place) -> None:
    with pytest.raises(RunNotFoundError, match="no run 'a-run'"):
        await reap(place.root, place.new_executor(), run_id="a-run")
    assert await reap(place.root, place.new_executor()) == []
