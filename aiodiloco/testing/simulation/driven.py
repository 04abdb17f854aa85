"""Runs that are launched: drivers that are killed, stopped, doubled and cut off, and what comes after them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.errors import KeyNotFoundError
from aiodiloco.executors.core import Executor
from aiodiloco.run import attach, launch, reap
from aiodiloco.run.record import RECORD, RESULT
from aiodiloco.testing.simulation.network import ROOT
from aiodiloco.testing.simulation.plane import Plane, PlaneBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiodiloco.testing.simulation.process import Process
    from aiodiloco.testing.simulation.schedule import DriverPlan, Event
    from aiodiloco.testing.simulation.world import World

__all__ = ["RUN_ID", "Driven"]

RUN_ID = "run"

_MOST_DRIVERS = 8
_AGAIN_S = 2.0
_END_S = 12 * 3600.0


class Driven:
    """A run with drivers.

    Attributes:
        plane: Where the replicas are.
        drivers: All there have been.
        has_ended: Whether nothing goes on any more.
        outcome: What the run says came of it, or that it has no result.
    """

    def __init__(self, world: World, plan: DriverPlan) -> None:
        self.drivers: list[Process] = []
        self.has_ended = False
        self.outcome = "none: nobody came back"
        self._world = world
        self._plan = plan
        loop = asyncio.get_running_loop()
        self.plane = Plane(world, plan.plane, loop.call_later)

    async def run(self) -> None:
        """Run until nothing goes on any more, or twelve hours have passed."""
        with anyio.move_on_after(_END_S):
            async with anyio.create_task_group() as tg:
                for event in self._world.schedule.events:
                    tg.start_soon(self._cause, event)
                await self._keep_driving()
                await self._wait_for_all()
                self.has_ended = True
                tg.cancel_scope.cancel()

    async def _has(self, key: str) -> bool:
        try:
            await self._world.store.get(key)
        except KeyNotFoundError:
            return False
        return True

    async def _keep_driving(self) -> None:
        """Launch the run, and come back to it after each end of its driver until it has ended, if anyone does."""
        again = {"launch": self._launch, "attach": self._attach, "reap": self._reap, None: None}[self._plan.comes_back]
        drive: Callable[[], Coroutine[Any, Any, object]] | None = self._launch
        while drive is not None and len(self.drivers) < _MOST_DRIVERS:
            self._world.caused["restart of a driver"] += bool(self.drivers)
            await self._start(drive).wait_until_ended()
            if await self._has(RESULT):
                return
            drive = again if again is None or await self._has(RECORD) else self._launch
            await anyio.sleep(self._plan.back_s + _AGAIN_S)

    async def _wait_for_all(self) -> None:
        while living := [process for process in self._world.processes if process.lives]:
            await living[0].wait_until_ended()

    async def _cause(self, event: Event) -> None:
        await anyio.sleep(event.at_s)
        if event.rank is None:
            self._befall_driver(event)
        elif (call := self.plane.newest(event.rank)) is not None:
            if event.what == "duplicate":
                self._world.caused["duplicate"] += 1
                call.start()
                return
            if event.what == "rerun":
                call.start_again(event.for_s)
            self._world.befall(call.processes[-1] if call.processes else None, event)

    def _befall_driver(self, event: Event) -> None:
        if event.what in ("duplicate", "cancel"):
            self._world.caused[f"{event.what} of a driver"] += 1
            self._start(self._attach if event.what == "duplicate" else self._cancel)
        else:
            self._world.caused[f"{event.what} of a driver"] += 1
            self._world.befall(self.drivers[-1], event)

    def _start(self, drive: Callable[[], Coroutine[Any, Any, object]]) -> Process:
        async def main(_: Process) -> None:
            await drive()

        name = f"driver#{len(self.drivers)}"
        process = self._world.start(name, main, patience_s=self._plan.patience_s)
        self.drivers.append(process)
        return process

    def _executor(self) -> Executor:
        return Executor(PlaneBackend(self.plane))

    async def _launch(self) -> None:
        plan, schedule = self._plan, self._world.schedule
        async with (
            self._executor() as executor,
            launch(
                executor,
                None,
                schedule.world_size,
                store=ROOT,
                timeout=plan.timeout_s,
                policy=plan.policy,
                run_id=RUN_ID,
                lease=plan.lease_s,
                max_gpu_seconds=plan.max_gpu_seconds,
            ) as run,
        ):
            await run.wait()

    async def _attach(self) -> None:
        async with self._executor() as executor:
            run = await attach(RUN_ID, store=ROOT, executor=executor)
            await run.wait()

    async def _cancel(self) -> None:
        async with self._executor() as executor:
            run = await attach(RUN_ID, store=ROOT, executor=executor)
            await run.cancel()

    async def _reap(self) -> None:
        async with self._executor() as executor:
            await reap(ROOT, executor, run_id=RUN_ID)
