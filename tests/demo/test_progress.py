"""Progress: bars on a terminal, a few lines elsewhere, both drawn from events."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from aiodiloco import Event
from aiodiloco.demo.progress import Bars, Lines, Row, show_progress
from aiodiloco.demo.settings import DemoSettings

SETTINGS = DemoSettings(replicas=2, steps=200, sync_every=20)


def _event(kind: str, writer: str = "0-0", time: float = 0.0, **data: object) -> Event:
    return Event(kind, writer, 0, time, data)


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=110), file


def _play(progress: Bars | Lines, *, steps: int) -> None:
    """Send what two replicas and one alone log in `steps` steps, in bundles as they come from a store."""
    with progress:
        for run, writer in (("diloco", "0-0"), ("diloco", "1-0"), ("alone", "0-0")):
            progress.take(run, _event("joined", writer, time=100.0))
        for first in range(0, steps, 25):
            for run, writer in (("diloco", "0-0"), ("diloco", "1-0"), ("alone", "0-0")):
                for step in range(first + 1, min(first + 25, steps) + 1):
                    kind = "step" if run == "diloco" else "metrics"
                    data = {"step": step, "loss": 2.5, "tokens": step * 512}
                    progress.take(run, _event(kind, writer, time=100.0 + step / 10, **data))
                    if run == "diloco" and step % 20 == 0:
                        progress.take(run, _event("round", writer, round=step // 20 - 1))


def test_a_row_follows_steps_rounds_and_speed():
    row = Row("replica 0", round=0)
    for event in (
        _event("joined", time=100.0),
        _event("step", time=102.0, step=20, round=0, loss=2.5, tokens=1000),
        _event("round", round=0),
        _event("metrics", step=20, held_out_loss=9.9),
    ):
        row.take(event)
    assert (row.step, row.round, row.loss, row.tokens_per_s) == (20, 1, 2.5, 500.0)


def test_a_row_shows_a_loss_that_is_no_number():
    row = Row("replica 0")
    row.take(_event("step", step=1, loss="nan", tokens=1))
    assert row.step == 1
    assert math.isnan(row.loss)


@pytest.mark.parametrize("steps", [200, 10, 3, 1])
def test_without_a_terminal_there_is_a_line_for_every_tenth_at_most(steps):
    console, file = _console(terminal=False)
    progress = show_progress(console, DemoSettings(replicas=2, steps=steps, sync_every=1))
    _play(progress, steps=steps)
    lines = file.getvalue().splitlines()
    assert 1 <= len(lines) <= 10
    assert "\x1b" not in file.getvalue()


def test_a_line_says_step_round_losses_and_speed():
    console, file = _console(terminal=False)
    _play(show_progress(console, SETTINGS), steps=200)
    last = file.getvalue().splitlines()[-1]
    assert last == "step 200/200  round 10  loss 2.500 (mean of 2), alone 2.500  15.4k tokens/s"


def test_on_a_terminal_there_is_a_bar_for_every_replica():
    console, file = _console(terminal=True)
    _play(show_progress(console, SETTINGS), steps=200)
    screen = file.getvalue()
    for name in ("replica 0", "replica 1", "alone"):
        assert name in screen
    for part in ("━", "200/200", "loss 2.500", "5.1k tokens/s", "round 10"):
        assert part in screen


def test_a_bar_says_that_its_replica_has_not_started():
    console, file = _console(terminal=True)
    with show_progress(console, SETTINGS):
        pass
    assert file.getvalue().count("starting") >= 3


def test_events_of_unknown_writers_change_nothing():
    console, file = _console(terminal=False)
    progress = show_progress(console, SETTINGS)
    progress.take("diloco", _event("step", "driver", step=200, loss=0.0, tokens=1))
    assert file.getvalue() == ""
