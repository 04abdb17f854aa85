"""Whole runs in one process and in virtual time, under seeded faults.

`simulate(seed)` runs the real replicas, rounds and checkpoints through the deaths, pauses, duplicates and store faults
that the seed stands for, and checks what must hold of every run. A seed that fails fails again.
"""

from __future__ import annotations

import torch

from aiodiloco.testing.simulation.invariants import check_invariants
from aiodiloco.testing.simulation.schedule import Event, Schedule, make_schedule
from aiodiloco.testing.simulation.virtual_time import DeadlockError, VirtualTimeLoop, run_in_virtual_time
from aiodiloco.testing.simulation.world import World

__all__ = [
    "DeadlockError",
    "Event",
    "Schedule",
    "VirtualTimeLoop",
    "World",
    "check_invariants",
    "make_schedule",
    "run_in_virtual_time",
    "simulate",
]


def simulate(schedule: Schedule | int) -> World:
    """Return what became of a run; raise AssertionError if it broke an invariant."""

    chosen = make_schedule(schedule) if isinstance(schedule, int) else schedule

    async def main() -> World:
        world = World(chosen)
        await world.run()
        await check_invariants(world)
        return world

    with torch.random.fork_rng(devices=[]):  # checkpoints hold the random state, and are named by their content
        torch.manual_seed(chosen.seed)
        return run_in_virtual_time(main, seed=chosen.seed)
