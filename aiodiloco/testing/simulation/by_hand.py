"""Replicas that were started by hand, each again after its end, as a platform does that knows nothing of runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import anyio

from aiodiloco.testing.simulation.network import ROOT
from aiodiloco.testing.simulation.training import train

if TYPE_CHECKING:
    from aiodiloco.testing.simulation.process import Process
    from aiodiloco.testing.simulation.schedule import Event
    from aiodiloco.testing.simulation.world import World

__all__ = ["run_by_hand"]

_URI = f"{ROOT}/runs/run"
_MOST_RESTARTS = 12
_RESTART_S = 2.0
_END_S = 6 * 3600.0


async def run_by_hand(world: World) -> None:
    """Run until every rank has finished, or six hours have passed."""
    hands = _Hands(world)
    with anyio.move_on_after(_END_S):
        async with anyio.create_task_group() as tg:
            for rank, after_s in enumerate(world.schedule.start_s):
                tg.start_soon(hands.keep_running, rank, after_s)
            for event in world.schedule.events:
                tg.start_soon(hands.cause, event)
            await hands.all_finished.wait()
            tg.cancel_scope.cancel()


class _Hands:
    def __init__(self, world: World) -> None:
        self.all_finished = anyio.Event()
        self._world = world
        self._newest: dict[int, Process] = {}
        self._num_started: Counter[int] = Counter()
        self._away_s: dict[int, float] = {}

    async def keep_running(self, rank: int, after_s: float) -> None:
        """Start a rank, and start it again when it ends before it has finished.

        Unless it was fenced: then another process of the rank goes on.
        """
        await anyio.sleep(after_s)
        while rank not in self._world.notes.finished and self._num_started[rank] < _MOST_RESTARTS:
            name = f"{rank}#{self._num_started[rank]}"
            self._world.caused["restart"] += self._num_started[rank] > 0
            self._num_started[rank] += 1
            await self._live(rank, name)
            if name in self._world.fenced:
                return
            await anyio.sleep(self._away_s.pop(rank, _RESTART_S))

    async def cause(self, event: Event) -> None:
        """Let an event happen, in its time."""
        await anyio.sleep(event.at_s)
        assert event.rank is not None
        if event.what == "duplicate":
            self._world.caused["duplicate"] += 1
            await self.keep_running(event.rank, 0.0)
        else:
            if event.what == "kill":
                self._away_s[event.rank] = event.for_s
            self._world.befall(self._newest.get(event.rank), event)

    async def _live(self, rank: int, name: str) -> None:
        world = self._world

        async def main(process: Process) -> None:
            await train(world.notes, world.schedule, _URI, rank=rank, name=process.name)

        process = self._newest[rank] = world.start(name, main, on_end=self._note_end)
        await process.wait_until_ended()

    def _note_end(self, _: Process) -> None:
        if len(self._world.notes.finished) == self._world.schedule.world_size:
            self.all_finished.set()
