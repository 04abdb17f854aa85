"""Lines of a log are neither lost, repeated nor torn."""

from __future__ import annotations

import datetime
import itertools

from hypothesis import given
from hypothesis import strategies as st
from modal.types import LogEntry

from aiodiloco.executors.modal.lines import Lines
from aiodiloco.executors.modal.seen import Seen

_NOW = datetime.datetime.now(datetime.UTC)


def _entry(second: float, message: str, source: str = "stdout") -> LogEntry:
    return LogEntry(message, _NOW + datetime.timedelta(seconds=second), source, "fc-1", [])


@given(st.text(alphabet="ab\n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_lines_do_not_depend_on_the_pieces_they_came_in(text: str, cuts: list[int]) -> None:
    lines, bounds = Lines(), sorted([0, *(min(cut, len(text)) for cut in cuts), len(text)])
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    seen = [line for piece in pieces for line in lines.feed(piece)] + lines.rest()
    assert seen == (text.split("\n") if not text.endswith("\n") else text.split("\n")[:-1]) * bool(text)


def test_a_carriage_return_before_the_line_end_is_dropped() -> None:
    assert Lines().feed("50 %\r100 %\r\n") == ["50 %\r100 %"]


def test_entries_seen_before_are_told_from_equal_ones_that_are_new() -> None:
    seen = Seen([_entry(0, "a"), _entry(1, "b")])
    again = [_entry(0, "a"), _entry(1, "b"), _entry(1, "b"), _entry(1, "b", "stderr"), _entry(2, "c")]
    assert seen.new(again) == again[2:]
    assert seen.new(again) == []


def test_an_entry_that_comes_late_is_new_and_the_mark_stays_behind_it() -> None:
    seen = Seen([_entry(0, "a"), _entry(10, "c")])
    assert seen.since == _NOW + datetime.timedelta(seconds=5)
    assert seen.new([_entry(7, "b"), _entry(10, "c")]) == [_entry(7, "b")]
    assert seen.since == _NOW + datetime.timedelta(seconds=5)


def test_before_the_first_entry_everything_of_the_last_days_is_asked_for() -> None:
    seen = Seen([])
    assert _NOW - seen.since > datetime.timedelta(days=1)
    assert seen.new([_entry(-3600, "a")]) == [_entry(-3600, "a")]


def test_what_was_left_out_of_the_history_is_not_new() -> None:
    seen = Seen([_entry(3, "c"), _entry(4, "d")], is_whole=False)
    assert seen.new([_entry(2, "b"), _entry(3, "c"), _entry(4, "d"), _entry(5, "e")]) == [_entry(5, "e")]


def test_entries_from_before_what_is_asked_for_are_not_new() -> None:
    """Whoever reads for others asks for what the slowest of them needs."""
    seen = Seen([_entry(0, "a"), _entry(10, "b")])
    assert seen.new([_entry(0, "a"), _entry(10, "b"), _entry(11, "c")]) == [_entry(11, "c")]
