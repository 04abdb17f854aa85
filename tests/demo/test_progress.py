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
                        data = {"round": step // 20 - 1, "step": step, "absent": [], "included": True}
                        progress.take(run, _event("round", writer, **data))


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


def _lose_and_return(progress: Bars | Lines) -> None:
    """Send how replica 1 is killed after three rounds, misses the fourth, and comes back."""

    def take(kind: str, writer: str, **data: object) -> None:
        progress.take("diloco", _event(kind, writer, time=100.0 + float(data.get("step", 0)), **data))

    with progress:
        for writer in ("0-0", "1-0"):
            take("joined", writer)
            take("step", writer, step=60, loss=2.5, tokens=1)
            take("round", writer, round=2, step=60, absent=[], included=True)
        progress.take("alone", _event("metrics", step=200, loss=2.0, tokens=1))
        take("ended", "driver-1", rank=1, incarnation=0, status="failed", preempted=True, error="killed by SIGKILL")
        take("step", "0-0", step=120, loss=2.0, tokens=1)
        take("round", "0-0", round=3, step=80, absent=[1], included=True)
        take("respawned", "driver-1", rank=1, incarnation=1)
        take("restored", "1-1", round=2, step=40)
        take("round", "1-1", round=2, step=60, absent=[], included=False)
        take("round", "1-1", round=3, step=80, absent=[1], included=False)
        take("step", "1-1", step=140, loss=2.25, tokens=1)
        take("round", "1-1", round=4, step=100, absent=[], included=True)
        take("step", "0-0", step=140, loss=2.25, tokens=1)


def test_without_a_terminal_the_accident_is_told_in_sentences_and_the_others_go_on():
    console, file = _console(terminal=False)
    _lose_and_return(show_progress(console, SETTINGS))
    assert [line for line in file.getvalue().splitlines() if line.startswith("Replica")] == [
        "Replica 1 was killed on purpose (SIGKILL), halfway; the others go on.",
        "Replica 1 is started again, as its incarnation 1.",
        "Replica 1 is back in round 5, from the checkpoint of round 2 and the rounds since; it missed round 4.",
    ]
    steps = [line for line in file.getvalue().splitlines() if line.startswith("step")]
    assert steps[1].startswith("step 120/200  round 3  loss 2.000 (mean of 1)"), "it does not wait for the dead"
    assert steps[-1].startswith("step 140/200")
    assert "(mean of 2)" in steps[-1]


def test_on_a_terminal_the_accident_is_told_above_the_bars_and_its_bar_says_why_it_stands_still():
    console, file = _console(terminal=True)
    _lose_and_return(show_progress(console, SETTINGS))
    screen = file.getvalue()
    assert "Replica 1 was killed on purpose (SIGKILL), halfway; the others go on." in screen
    assert "Replica 1 is back in round 5" in screen
    row = Row("replica 1")
    row.take(_event("ended", "driver-1", status="failed", preempted=True))
    assert row.trouble == "killed"
    row.take(_event("respawned", "driver-1", incarnation=1))
    assert row.trouble == "starting again, incarnation 1"
    row.take(_event("step", "1-1", step=1, loss=1.0, tokens=1))
    assert row.trouble is None


def test_events_of_unknown_writers_change_nothing():
    console, file = _console(terminal=False)
    progress = show_progress(console, SETTINGS)
    progress.take("diloco", _event("step", "driver", step=200, loss=0.0, tokens=1))
    assert file.getvalue() == ""
