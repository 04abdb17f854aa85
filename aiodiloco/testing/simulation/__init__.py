"""Whole runs in one process and in virtual time, under seeded faults.

`simulate(seed)` runs the real replicas, rounds, checkpoints and drivers through the deaths, pauses, duplicates and
faults of store and control plane that the seed stands for, and checks what must hold of every run. A seed that fails
fails again. `python -m aiodiloco.testing.simulation --seeds 0:1000` tries many.
"""

from __future__ import annotations

import torch

from aiodiloco.testing.simulation.by_hand import run_by_hand
from aiodiloco.testing.simulation.driven import Driven
from aiodiloco.testing.simulation.invariants import check_by_hand
from aiodiloco.testing.simulation.network import simulated_scheme
from aiodiloco.testing.simulation.run_invariants import check_driven
from aiodiloco.testing.simulation.schedule import DriverPlan, Event, PlaneFaults, Schedule, make_schedule
from aiodiloco.testing.simulation.virtual_time import DeadlockError, VirtualTimeLoop, run_in_virtual_time
from aiodiloco.testing.simulation.world import World

__all__ = [
    "DeadlockError",
    "DriverPlan",
    "Event",
    "PlaneFaults",
    "Schedule",
    "VirtualTimeLoop",
    "World",
    "make_schedule",
    "run_in_virtual_time",
    "simulate",
]


def simulate(schedule: Schedule | int) -> World:
    """Return what became of a run; raise AssertionError if it broke an invariant."""
    chosen = make_schedule(schedule) if isinstance(schedule, int) else schedule

    async def main() -> World:
        world = World(chosen)
        try:
            await _run(world)
        finally:
            await world.close()
        return world

    with torch.random.fork_rng(devices=[]), simulated_scheme():
        torch.manual_seed(chosen.seed)  # checkpoints hold the random state, and are named by their content
        return run_in_virtual_time(main, seed=chosen.seed)


async def _run(world: World) -> None:
    plan = world.schedule.driver
    if plan is None:
        await run_by_hand(world)
        await check_by_hand(world)
    else:
        driven = Driven(world, plan)
        await driven.run()
        world.driven = driven
        await check_driven(world, driven)
