"""One trial: a real run, one blow at one point, and what came of it."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for; marks are files of no size

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread

from aiodiloco.executors.policy import Quorum, Respawn, WaitAll
from aiodiloco.records import new_run_id
from aiodiloco.run import launch, reap
from aiodiloco.store import join_uri, open_store
from aiodiloco.testing.chaos.blows import Blow
from aiodiloco.testing.chaos.driver import run_arguments
from aiodiloco.testing.chaos.points import DRIVER, HALFWAY, TRAINED, Point
from aiodiloco.testing.chaos.report import QUORUM, Report, judge, read_rounds
from aiodiloco.testing.chaos.setting import GO, STRUCK, WORLD_SIZE, Setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiodiloco.executors.policy import RunPolicy
    from aiodiloco.records import JSON, ReplicaResult
    from aiodiloco.testing.chaos.places import Place

__all__ = ["run_trial"]

_MOST_TRIES = 3
_REACHED_BOUND_S = 120.0
_END_BOUND_S = 200.0
_GONE_BOUND_S = 30.0
_POLL_S = 0.02
_TRAIN = "aiodiloco.testing.chaos.setting:train"
_POLICIES: dict[Blow, RunPolicy] = {
    Blow.restarted: Respawn(backoff=0.0),
    Blow.lost: Quorum(QUORUM, rest="wait"),
    Blow.continued: Respawn(backoff=0.0, then=WaitAll()),
}


async def run_trial(point: Point | None, blow: Blow, place: Place, directory: Path) -> Report:
    """Run a whole training at `place`, strike once, and return what came of it.

    Where rounds go on without the late, a slow machine may leave the victim out of the round of the point: then again.

    Args:
        point: Where; None strikes nobody.
        blow: What happens there, one of `blows_for(point)`.
        place: Runs the replicas.
        directory: An empty one, of this trial's own.
    """
    for number in range(_MOST_TRIES - 1):
        trial = _Trial(point, blow, place, directory / f"try-{number}")
        report = await _run(trial, blow)
        if trial.was_reached or not blow.is_elastic:
            return report
    return await _run(_Trial(point, blow, place, directory / "last-try"), blow)


async def _run(trial: _Trial, blow: Blow) -> Report:
    try:
        with anyio.fail_after(_END_BOUND_S):
            rows = await trial.flow()
            trial.note_end()
            await trial.wait_for_nobody()
            await judge(trial.report, blow, trial.uri, rows, trial.victim)
    except TimeoutError:
        trial.report.problems.append(f"not over after {_END_BOUND_S:g} s")
    except Exception as exc:  # noqa: BLE001 - one trial of many; what went wrong is its result
        trial.report.problems.append(f"{type(exc).__name__}: {exc}")
    finally:
        trial.end_all()
    if trial.report.problems:
        trial.report.outcome = "; ".join(trial.report.problems)
    return trial.report


class _Trial:
    def __init__(self, point: Point | None, blow: Blow, place: Place, directory: Path) -> None:
        self.report = Report("nowhere" if point is None else point.name, blow.value, place.name)
        directory.mkdir()
        self.store = str(directory / "store")
        self.run_id = new_run_id()
        self.uri = join_uri(self.store, "runs", self.run_id)
        self._point = point
        self._blow = blow
        self._place = place
        self._directory = directory
        given = None if point is None else point.trigger.given
        holds: dict[str | None, Literal["halfway", "end"]] = {HALFWAY: "halfway", TRAINED: "end"}
        self._setting = Setting(
            point=None if point is None else point.name,
            blow=blow.signal,
            directory=str(directory),
            is_elastic=blow.is_elastic,
            hold=holds.get(given),
        )

    @property
    def victim(self) -> int | None:
        """The rank that is struck, if one is."""
        return None if self._point is None or self._point.victim == DRIVER else self._point.victim

    @property
    def was_reached(self) -> bool:
        """Whether somebody was struck, if anybody should be."""
        return self._point is None or (self._directory / STRUCK).exists()

    async def flow(self) -> list[ReplicaResult]:
        """Run it; return how each rank ended."""
        if self._point is not None and self._point.victim == DRIVER:
            return await self._strike_driver()
        if self._blow is Blow.replaced:
            return await self._replace()
        return await self._strike_replica()

    # Replicas.

    async def _strike_replica(self) -> list[ReplicaResult]:
        arguments = run_arguments(self.store, self.run_id, self._setting) | {
            "policy": _POLICIES[self._blow],
            "lease": None,
        }
        async with launch(self._place.executor, **arguments) as run, anyio.create_task_group() as tasks:
            if self._blow is Blow.continued and self._point is not None:
                tasks.start_soon(self._continue_later, self._others_have_gone_on)
            result = await run.wait_for_result()
        num = sum(row.status == "succeeded" for row in result.rows)
        self.report.outcome = f"{result.outcome}, {num} of {WORLD_SIZE} ranks"
        if len(result.attempts) > WORLD_SIZE:
            self.report.outcome += f", {len(result.attempts) - WORLD_SIZE} restarts"
        if result.outcome != "succeeded":
            self.report.problems.append(f"the run {result.outcome}: {result.reason}")
        if not self.was_reached:
            self.report.problems.append("the point was not reached")
        return list(result.rows)

    async def _replace(self) -> list[ReplicaResult]:
        """Start the victim's rank again while it is stopped, as what takes it for dead does, and let it wake up."""
        victim, executor = self.victim, self._place.executor
        assert victim is not None
        arguments: dict[str, JSON] = {"setting": dataclasses.asdict(self._setting), "rendezvous_uri": self.uri}
        handles = await executor.launch_replicas(WORLD_SIZE, _TRAIN, arguments)
        zombie = handles.pop(victim)
        try:
            await self._wait_for_mark(STRUCK)
            handles += await executor.launch_replicas(1, _TRAIN, {**arguments, "as_rank": victim, "incarnation": 1})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._continue_later, self._is_replaced)
                rows = await executor.collect(handles, timeout=_END_BOUND_S, policy=WaitAll())
            [end] = await executor.collect([zombie], timeout=_END_BOUND_S, policy=WaitAll())
        finally:
            self._send(signal.SIGCONT)
        rows[-1] = dataclasses.replace(rows[-1], rank=victim)
        self.report.outcome = f"replaced; it woke up and {_told(end)}"
        if not ("RankTakenError" in str(end.error) or await self._may_finish(end)):
            self.report.problems.append(f"the replaced process was not fenced: {end.error or end.result}")
        return [*rows, *([end] if end.status == "succeeded" else [])]

    async def _may_finish(self, end: ReplicaResult) -> bool:
        """Whether a process that was replaced finished with every right: in the last round, or as a newer one."""
        async with open_store(self.uri) as store:
            last = (await read_rounds(store))[-1]
        return isinstance(end.result, dict) and (
            (self.victim, 0) in last or end.result["process"] != f"{self.victim}-0"
        )

    async def _continue_later(self, is_time: Callable[[], Awaitable[bool]]) -> None:
        await self._wait_for_mark(STRUCK)
        while not await is_time():
            await anyio.sleep(_POLL_S)
        self._send(signal.SIGCONT)

    async def _others_have_gone_on(self) -> bool:
        """Whether a round was decided without the victim, or all others have ended."""
        async with open_store(self.uri) as store:
            rounds = await read_rounds(store)
        if any(self.victim not in {member.rank for member in members} for members in rounds):
            return True
        return len(self._living()) <= 1

    async def _is_replaced(self) -> bool:
        """Whether a round was decided with another process of the victim's rank, or that has ended."""
        async with open_store(self.uri) as store:
            rounds = await read_rounds(store)
        if any((self.victim, 1) in members for members in rounds):
            return True
        return len(self._living()) <= 1

    # The driver.

    async def _strike_driver(self) -> list[ReplicaResult]:
        with self._start_driver() as driver:
            try:
                return await self._after_driver(driver)
            finally:
                driver.kill()

    async def _after_driver(self, driver: subprocess.Popen[str]) -> list[ReplicaResult]:
        await self._wait_for_mark(STRUCK)
        if self._blow is not Blow.deposed:
            code = await anyio.to_thread.run_sync(driver.wait, _END_BOUND_S)
            if code != -signal.SIGKILL:
                self.report.problems.append(f"the driver ended with {code}")
        if self._blow is Blow.abandoned:
            return await self._abandon()
        (self._directory / GO).touch()
        async with launch(self._place.executor, **run_arguments(self.store, self.run_id, self._setting)) as run:
            result = await run.wait_for_result()
        self.report.outcome = f"{result.outcome}, collected by another driver"
        if self._blow is Blow.deposed:
            self._send(signal.SIGCONT)
            said, _ = await anyio.to_thread.run_sync(lambda: driver.communicate(timeout=_END_BOUND_S))
            rows = [row.to_dict() for row in result.rows]
            if driver.returncode != 0 or json.loads(said) != json.loads(json.dumps(rows)):
                self.report.problems.append(f"the driver that woke up ended with {driver.returncode}, saying {said}")
            self.report.outcome += ", the first one agrees"
        return list(result.rows)

    async def _abandon(self) -> list[ReplicaResult]:
        await self.wait_for_nobody()
        [result] = await reap(self.store, self._place.executor)
        self.report.outcome = "replicas ended by the lease, reaped"
        return list(result.rows)

    def _start_driver(self) -> subprocess.Popen[str]:
        told = {"store": self.store, "run_id": self.run_id, "setting": dataclasses.asdict(self._setting)}
        told |= self._place.driver_arguments(self._directory)
        return subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
            [sys.executable, "-m", "aiodiloco.testing.chaos.driver", json.dumps(told)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._place.driver_env(), "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    # Both.

    def note_end(self) -> None:
        """Note how long it took from the blow on."""
        mark = self._directory / STRUCK
        self.report.seconds = round(time.time() - mark.stat().st_mtime, 2) if mark.exists() else 0.0

    async def wait_for_nobody(self) -> None:
        """Wait until every replica's process has ended."""
        with anyio.move_on_after(_GONE_BOUND_S):
            while self._living():
                await anyio.sleep(_POLL_S)
        if living := self._living():
            self.report.problems.append(f"still there: {', '.join(path.name for path in living)}")

    def end_all(self) -> None:
        """End what is left, whatever happened."""
        (self._directory / GO).touch()
        for path in self._living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.suffix[1:]), signal.SIGKILL)

    async def _wait_for_mark(self, name: str) -> None:
        with anyio.move_on_after(_REACHED_BOUND_S) as scope:
            while not (self._directory / name).exists():
                await anyio.sleep(_POLL_S)
        if scope.cancelled_caught:
            raise RuntimeError(f"nobody was {name} within {_REACHED_BOUND_S:g} s")

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._directory / STRUCK).read_text()), number)

    def _living(self) -> list[Path]:
        """Return the signs of life of all replica processes that have not ended."""
        return [path for path in self._directory.glob("alive-*") if _is_locked(path)]


def _is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _told(row: ReplicaResult) -> str:
    return "finished too" if row.status == "succeeded" else str(row.error).partition(":")[0]
