"""Hundreds of runs that are killed, paused, doubled and given a bad store: each is sound, or its seed is shown."""

from __future__ import annotations

from collections import Counter

import pytest

from aiodiloco.testing.faulty_store import Faults
from aiodiloco.testing.simulation import Event, Schedule, World, make_schedule, simulate

_SEEDS, _CHUNK = 500, 50


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
        seen["events"] += len(world.schedule.events)
    assert min(seen[what] for what in ("faults", "fenced", "events")) > 0, f"these seeds try too little: {seen}"


def _trace(world: World) -> tuple[object, ...]:
    errors = [(name, type(exc), str(exc)) for name, exc in world.errors]
    return world.findings, world.finished, world.fenced, errors, world.injected


def test_a_seed_repeats_to_the_last_fault() -> None:
    """Else a failing seed could not be looked into."""
    seeds = [seed for seed in range(40) if make_schedule(seed).faults.unavailable and make_schedule(seed).events][:5]
    for seed in seeds:
        assert _trace(simulate(seed)) == _trace(simulate(seed))


def test_a_calm_run_has_every_rank_in_every_round() -> None:
    schedule = Schedule(
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
    world = simulate(schedule)
    assert (world.fenced, world.errors) == ([], [])
    assert len(world.contributed) == 4 * 3
    assert len(world.findings) == 4 * 3


def test_a_duplicate_of_a_living_process_is_refused_and_one_of_a_paused_one_fences_it() -> None:
    """Never do both contribute to one round: the fold would differ."""
    events = (
        Event(at_s=3.5, what="duplicate", rank=1, for_s=0.0),
        Event(at_s=10.2, what="pause", rank=0, for_s=20.0),
        Event(at_s=11.0, what="duplicate", rank=0, for_s=0.0),
    )
    schedule = Schedule(
        seed=1,
        world_size=2,
        min_replicas=2,
        sync_every=2,
        num_rounds=12,
        checkpoint_every=1,
        algorithm="gather",
        step_s=(1.0, 1.0),
        start_s=(0.0, 0.0),
        faults=Faults(latency_s=0.01),
        events=events,
    )
    world = simulate(schedule)
    assert world.fenced == ["1#1", "0#0"]
