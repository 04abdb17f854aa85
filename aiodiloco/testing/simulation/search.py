"""Try many seeds, on all cores, and count what happened to them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import torch

from aiodiloco.testing.simulation import simulate
from aiodiloco.testing.simulation.mutations import MUTATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiodiloco.testing.simulation.schedule import Schedule
    from aiodiloco.testing.simulation.world import World

__all__ = ["Tally", "search", "tally_of"]

_CHUNK = 8


@dataclasses.dataclass
class Tally:
    """What happened to some seeds.

    Attributes:
        num_seeds: How many were tried.
        failed: Seed -> what broke.
        seen: How often what was there: runs, processes, rounds.
        caused: How often what was done to processes.
        store_faults, plane_faults: How often what went wrong.
        virtual_s, cpu_s: Simulated seconds, and what they cost.
    """

    num_seeds: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    seen: Counter[str] = dataclasses.field(default_factory=Counter)
    caused: Counter[str] = dataclasses.field(default_factory=Counter)
    store_faults: Counter[str] = dataclasses.field(default_factory=Counter)
    plane_faults: Counter[str] = dataclasses.field(default_factory=Counter)
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def num_faults(self) -> int:
        """How much was done to the runs, in all."""
        return sum(sum(counts.values()) for counts in (self.caused, self.store_faults, self.plane_faults))

    def __iadd__(self, other: Tally) -> Self:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, dict):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "num_faults": self.num_faults}


def tally_of(seed: int | Schedule) -> Tally:
    """Simulate one seed, or a schedule of one's own."""
    began = time.process_time()
    tally = Tally(num_seeds=1)
    try:
        _count(simulate(seed), tally)
    except Exception as exc:  # noqa: BLE001 - whatever breaks a seed is shown with it
        tally.failed[seed if isinstance(seed, int) else seed.seed] = f"{type(exc).__name__}: {exc}"
    tally.cpu_s = time.process_time() - began
    return tally


def search(
    seeds: Sequence[int | Schedule], *, jobs: int, mutation: str | None = None, stop_at_first: bool = False
) -> Iterator[Tally]:
    """Yield a tally for each seed, in some order.

    Args:
        seeds: Which.
        jobs: Processes to share them.
        mutation: One of `MUTATIONS`, to be carried out first.
        stop_at_first: End after the first seed that fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once
    with context.Pool(jobs, initializer=functools.partial(_prepare, mutation)) as pool:
        for tally in pool.imap(tally_of, seeds, chunksize=_CHUNK):
            yield tally
            if tally.failed and stop_at_first:
                return


def _prepare(mutation: str | None) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    if mutation is not None:
        MUTATIONS[mutation].apply()


def _count(world: World, tally: Tally) -> None:
    rounds = {number for number, _ in world.notes.contributed}
    kind = "runs by hand" if world.driven is None else "runs with drivers"
    num_drivers = 0 if world.driven is None else len(world.driven.drivers)
    tally.seen += Counter(
        {
            kind: 1,
            "rounds": len(rounds),
            "contributions": len(world.notes.contributed),
            "drivers": num_drivers,
            "replicas": len(world.processes) - num_drivers,
            "fenced": len(world.fenced),
        }
    )
    tally.caused += +world.caused
    tally.store_faults += +world.injected
    if world.driven is not None:
        tally.plane_faults += +world.driven.plane.injected
        tally.seen[f"outcome {world.driven.outcome}"] += 1
    tally.virtual_s = world.virtual_s
