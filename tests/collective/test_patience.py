"""Deadlines that follow what was seen, never below what was asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.collective.patience import Lateness, patience_s


@pytest.mark.parametrize(
    ("lateness", "floor_s", "expected"),
    [
        ((), 5.0, 5.0),
        ((0.0, 0.0, 0.0), 5.0, 5.0),
        ((10.0,) * 9, 5.0, 10.0),
        ((8.0, 10.0, 12.0), 5.0, 10.0 + 6 * 1.4826 * 2),
        ((10.0, 10.0, 10.0, 10.0, 3600.0), 5.0, 10.0),  # one that died long ago
    ],
)
def test_patience(lateness: tuple[float, ...], floor_s: float, expected: float) -> None:
    assert patience_s(lateness, floor_s) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), max_size=64), st.floats(0, 1e6))
def test_never_below_the_floor(lateness: list[float], floor_s: float) -> None:
    assert patience_s(lateness, floor_s) >= floor_s


def test_old_rounds_are_forgotten() -> None:
    """A fleet that becomes faster is not waited for as before."""
    seen = Lateness()
    for _ in range(100):
        seen.note(300.0)
    assert seen.patience_s(1.0) == 300.0
    for _ in range(32):
        seen.note(-0.5)
    assert seen.patience_s(1.0) == 1.0
