"""Hundreds of runs that are killed, paused, doubled and given a bad store: each is sound, or its seed is shown."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from aiodiloco.errors import LeaseExpiredError
from aiodiloco.executors.policy import Respawn
from aiodiloco.testing.faulty_store import Faults
from aiodiloco.testing.simulation import DriverPlan, Event, PlaneFaults, Schedule, World, make_schedule, simulate

if TYPE_CHECKING:
    from aiodiloco.testing.simulation.process import Process

_SEEDS, _CHUNK = 500, 50


@pytest.mark.parametrize("seed", [1122, 4320, 6834])
def test_what_ten_thousand_seeds_found_stays_mended(seed: int) -> None:
    """A damaged read while joining; a first checkpoint that comes between two looks of a process that stood still."""
    simulate(seed)


@pytest.mark.parametrize("first", range(0, _SEEDS, _CHUNK))
def test_seeded_runs_are_sound(first: int) -> None:
    """What broke is in the message, and `simulate(seed)` shows it again."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + _CHUNK):
        try:
            world = simulate(seed)
        except Exception as exc:
            pytest.fail(f"seed {seed}, {make_schedule(seed)}: {exc!r}")
        seen["faults"] += sum(world.injected.values())
        seen["fenced"] += len(world.fenced)
        seen += world.caused
        if world.driven is not None:
            seen["faults of the control plane"] += sum(world.driven.plane.injected.values())
            seen[f"outcome {world.driven.outcome}"] += 1
    wanted = ("faults", "fenced", "kill", "pause", "duplicate", "partition", "rerun", "restart", "kill of a driver",
              "pause of a driver", "duplicate of a driver", "cancel of a driver", "restart of a driver",
              "faults of the control plane", "outcome succeeded", "outcome failed", "outcome cancelled")  # fmt: skip
    assert min(seen[what] for what in wanted) > 0, f"these seeds try too little: {seen}"


def _trace(world: World) -> tuple[object, ...]:
    errors = [(name, type(exc)) for name, exc in world.errors]
    processes = [(process.name, process.began_s, process.end and process.end.at_s) for process in world.processes]
    acts = None if world.driven is None else world.driven.plane.acts
    return world.notes.findings, world.notes.finished, world.fenced, errors, world.injected, processes, acts


def test_a_seed_repeats_to_the_last_fault() -> None:
    """Else a failing seed could not be looked into."""
    seeds = [seed for seed in range(40) if make_schedule(seed).faults.unavailable and make_schedule(seed).events][:6]
    assert {seed % 2 for seed in seeds} == {0, 1}, "with drivers and without"
    for seed in seeds:
        assert _trace(simulate(seed)) == _trace(simulate(seed))


_CALM = Schedule(
    seed=0,
    world_size=3,
    min_replicas=2,
    sync_every=2,
    num_rounds=4,
    checkpoint_every=2,
    algorithm="scatter",
    step_s=(1.0, 1.0, 1.0),
    start_s=(0.0, 0.0, 0.0),
    faults=Faults(),
    events=(),
)
_LAUNCHED = DriverPlan(
    policy=Respawn(backoff=1.0),
    timeout_s=1000.0,
    max_gpu_seconds=None,
    lease_s=30.0,
    patience_s=10.0,
    plane=PlaneFaults(),
    comes_back="attach",
    back_s=1.0,
)


def test_a_calm_run_has_every_rank_in_every_round() -> None:
    world = simulate(_CALM)
    assert (world.fenced, world.errors) == ([], [])
    assert len(world.notes.contributed) == 4 * 3
    assert len(world.notes.findings) == 4 * 3


def test_a_duplicate_of_a_living_process_is_refused_and_one_of_a_paused_one_fences_it() -> None:
    """Never do both contribute to one round: the fold would differ."""
    events = (
        Event(at_s=3.5, what="duplicate", rank=1, for_s=0.0),
        Event(at_s=10.2, what="pause", rank=0, for_s=20.0),
        Event(at_s=11.0, what="duplicate", rank=0, for_s=0.0),
    )
    schedule = dataclasses.replace(
        _CALM,
        seed=1,
        world_size=2,
        num_rounds=12,
        checkpoint_every=1,
        algorithm="gather",
        faults=Faults(latency_s=0.01),
        events=events,
    )
    world = simulate(schedule)
    assert world.fenced == ["1#1", "0#0"]


def _drivers(world: World) -> list[Process]:
    assert world.driven is not None
    return world.driven.drivers


def test_a_run_whose_driver_is_killed_is_driven_on_with_the_same_replicas() -> None:
    killed = Event(at_s=3.0, what="kill", rank=None, for_s=0.0)
    plan = dataclasses.replace(_LAUNCHED, lease_s=None)
    world = simulate(dataclasses.replace(_CALM, driver=plan, step_s=(15.0, 15.0, 15.0), events=(killed,)))
    assert [driver.end.how for driver in _drivers(world) if driver.end] == ["killed", "returned"]
    assert len(world.processes) == 2 + 3
    assert len(world.notes.contributed) == 4 * 3


def test_a_driver_that_wakes_after_another_took_over_touches_nothing() -> None:
    """It was stopped, and what it had begun is not its business any more."""
    events = (
        Event(at_s=3.0, what="pause", rank=None, for_s=100.0),
        Event(at_s=4.0, what="duplicate", rank=None, for_s=0.0),
    )
    plan = dataclasses.replace(_LAUNCHED, lease_s=None)
    world = simulate(dataclasses.replace(_CALM, driver=plan, step_s=(15.0, 15.0, 15.0), events=events))
    assert [driver.end.how for driver in _drivers(world) if driver.end] == ["returned", "returned"]
    assert world.driven is not None
    assert {act.process for act in world.driven.plane.acts} == {"driver#0"}
    assert len(world.processes) == 2 + 3


def test_replicas_of_a_driver_that_nobody_follows_are_gone() -> None:
    """The bound itself is among the invariants; here all of them end by it."""
    killed = Event(at_s=3.0, what="kill", rank=None, for_s=0.0)
    plan = dataclasses.replace(_LAUNCHED, comes_back=None)
    world = simulate(dataclasses.replace(_CALM, driver=plan, step_s=(60.0, 60.0, 60.0), events=(killed,)))
    assert [type(error) for _, error in world.errors] == [LeaseExpiredError] * 3
    assert world.driven is not None
    assert world.driven.outcome == "none: nobody came back"


def test_a_driver_waits_while_the_replicas_it_ends_are_ending() -> None:
    """Found by a seed: past the run's timeout it looked again and again without a pause."""
    plan = dataclasses.replace(_LAUNCHED, timeout_s=5.0, plane=PlaneFaults(latency_s=3.0))
    world = simulate(dataclasses.replace(_CALM, driver=plan))
    assert world.driven is not None
    assert world.driven.outcome == "cancelled"
