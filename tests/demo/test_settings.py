"""What the demo can be asked to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.demo.settings import DemoSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"replicas": 0}, "replicas must be 1 to 64, not 0"),
        ({"replicas": 65}, "replicas must be 1 to 64, not 65"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sync_every": 0}, "sync_every must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "less than 2\\*\\*63"),
        ({"away": -1.0}, "away must be 0 to 3600 seconds, not -1.0"),
        ({"away": float("nan")}, "away must be 0 to 3600 seconds, not nan"),
        ({"steps": 10, "sync_every": 11}, "sync_every=11 is more than steps=10, so no round would be complete"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_bounds(wrong, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**wrong)


def test_the_last_replica_is_killed_unless_nobody_would_be_left_or_nothing_to_come_back_to():
    assert DemoSettings().victim == 3
    assert DemoSettings(replicas=2, steps=20, sync_every=10).victim == 1
    assert DemoSettings(kill=False).victim is None
    assert DemoSettings(replicas=1).victim is None
    assert DemoSettings(steps=20, sync_every=20).victim is None


def test_it_is_away_for_longer_in_a_longer_run():
    assert [DemoSettings(steps=steps).pause_s for steps in (20, 750, 1000, 100_000)] == [5.0, 6.0, 8.0, 8.0]
    assert DemoSettings(away=0.5).pause_s == 0.5


@given(steps=st.integers(1, 5000), sync_every=st.integers(1, 5000))
def test_evaluations_are_few_and_at_ends_of_rounds_before_the_last_step(steps, sync_every):
    settings = DemoSettings(steps=max(steps, sync_every), sync_every=sync_every)
    at = settings.evaluate_at()
    assert len(at) <= 12
    assert at == sorted(set(at))
    assert all(step % sync_every == 0 and 0 < step < settings.steps for step in at)


def test_evaluations_are_evenly_spread():
    assert DemoSettings(steps=1000, sync_every=20).evaluate_at() == [
        80,
        160,
        240,
        320,
        400,
        500,
        580,
        660,
        740,
        820,
        900,
    ]


def test_every_round_of_a_short_run_is_evaluated():
    assert DemoSettings(steps=70, sync_every=20).evaluate_at() == [20, 40, 60]
