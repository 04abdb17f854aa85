"""A driver that was stopped for longer than its lease lasts, at the very moment when it acts."""

# ruff: noqa: ASYNC110 - what a task does can only be polled for

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import anyio
import pytest

from aiodiloco import Respawn
from aiodiloco.lease import LeaseHolder, LeaseTerms, Report
from aiodiloco.run.driver import Driver
from aiodiloco.run.journal import Slot, record_call, record_start
from aiodiloco.run.record import read_result
from aiodiloco.run.roster import Roster
from aiodiloco.run.wakeup import Wakeup
from aiodiloco.store import MemoryStore

from .scripted import WorldBackend
from .test_takeover import make_record

if TYPE_CHECKING:
    from aiodiloco.executors import Executor
    from aiodiloco.run.record import RunResult

    from .scripted import World

pytestmark = pytest.mark.timeout(20)

_TERMS = LeaseTerms.of(60.0)  # so that no beat tells it first


class Stopped:
    """A driver with a clock that jumps, as it does for a process that was stopped."""

    def __init__(self, executor: Executor) -> None:
        self.now = 0.0
        self.store = MemoryStore()
        self.result: RunResult | None = None
        self._executor = executor

    async def start(self, **changes: Any) -> None:
        record, wakeup, launched = make_record(terms=_TERMS, **changes), Wakeup(), anyio.Event()
        roster = Roster(self._executor.calls, record.n_replicas, 1, Report(), on_change=wakeup.ring)
        holder = await LeaseHolder.acquire(self.store, _TERMS, 1, roster.report, clock=lambda: self.now)
        assert holder is not None
        self.holder = holder
        self.driver = Driver(
            store=self.store,
            calls=self._executor.calls,
            record=record,
            holder=holder,
            roster=roster,
            wakeup=wakeup,
            on_launched=launched.set,
        )
        self.tasks.start_soon(self._run)
        await launched.wait()

    async def _run(self) -> None:
        self.result = await self.driver.run(is_first=True)

    async def is_stopped_and_deposed(self) -> None:
        """Let its lease go stale, and another driver take over, unseen."""
        self.now += _TERMS.ttl_s + 1
        assert await LeaseHolder.acquire(self.store, _TERMS, 2, Report) is not None

    async def __aenter__(self) -> Self:
        self.tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.tasks.__aexit__(None, None, None)


@pytest.fixture
def stopped(executor: Executor) -> Stopped:
    return Stopped(executor)


async def test_it_cancels_nothing(stopped: Stopped, world: World) -> None:
    async with stopped:
        await stopped.start()
        await stopped.is_stopped_and_deposed()
        stopped.driver.stop("it thinks that time is up")
    assert stopped.result is None
    assert world.living == ["0-0", "1-0", "2-0"]
    assert not any(replica.cancels for replica in world.replicas.values())


async def test_it_starts_nothing(stopped: Stopped, world: World) -> None:
    async with stopped:
        await stopped.start(policy=Respawn(backoff=0.0))
        await stopped.is_stopped_and_deposed()
        world.end("1-0", "failed")
    assert stopped.result is None
    assert list(world.spawned) == ["0-0", "1-0", "2-0"]


async def test_it_ends_what_it_was_just_starting(stopped: Stopped, world: World, backend: WorldBackend) -> None:
    async def be_stopped(call_id: str) -> None:
        if call_id == "1-1":
            await stopped.is_stopped_and_deposed()

    backend.after_spawn = be_stopped
    async with stopped:
        await stopped.start(policy=Respawn(backoff=0.0))
        world.end("1-0", "failed")
    assert stopped.result is None
    assert world.spawned["1-1"] == 1
    assert world.living == ["0-0", "2-0"]


async def test_it_leaves_the_result_to_who_drives_now(stopped: Stopped, world: World) -> None:
    """All ranks ended while it was stopped; what came of the run is not its to say any more."""
    async with stopped:
        await stopped.start()
        await stopped.is_stopped_and_deposed()
        world.end_all()
    assert stopped.result is None
    assert await read_result(stopped.store) is None


async def test_it_goes_on_if_nobody_took_over(stopped: Stopped, world: World) -> None:
    async with stopped:
        await stopped.start()
        stopped.now += _TERMS.ttl_s + 1
        stopped.driver.stop("time is up")
    assert stopped.result is not None
    assert not world.living


@pytest.mark.parametrize("is_journaled", [True, False])
async def test_a_start_that_another_driver_has_begun_is_not_made_twice(
    stopped: Stopped, world: World, backend: WorldBackend, is_journaled: bool
) -> None:
    async with stopped:
        await stopped.start(policy=Respawn(backoff=0.0))
        assert await record_start(stopped.store, Slot(1, 1), "another")
        if is_journaled:
            handle = await WorldBackend(world).spawn(make_record().request(1, 1))
            assert await record_call(stopped.store, handle, Slot(1, 1))
        world.end("1-0", "failed")
        if not is_journaled:
            await world.wait_for("1-2")
        else:
            while len(stopped.driver.roster.handles()) < 3 or stopped.driver.roster.handles()[1].call_id != "1-1":
                await anyio.sleep(0.005)
        assert [request.incarnation for request in backend.requests] == ([0, 0, 0] if is_journaled else [0, 0, 0, 2])
        world.end_all()
    assert stopped.result is not None
    assert stopped.result.outcome == "succeeded"
