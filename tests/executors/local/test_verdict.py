from __future__ import annotations

from typing import Any

import pytest

from aiodiloco.executors.local.verdict import judge, tell_unrecorded

_RETURNED = {"kind": "returned", "result": 5}
_RAISED = {"kind": "raised", "error": "ValueError: x", "traceback": "…"}
_CANCELLED = {"kind": "cancelled"}


@pytest.mark.parametrize(
    ("outcome", "exit_code", "asked", "status", "error"),
    [
        (_RETURNED, 0, None, "succeeded", None),
        (_RETURNED, 0, "cancel", "succeeded", None),
        (_RETURNED, 0, "timeout", "succeeded", None),
        (_RETURNED, -9, "cancel", "cancelled", "cancelled"),
        (_RETURNED, 120, None, "failed", "returned, and then ended with exit code 120"),
        (_RETURNED, -11, None, "failed", "returned, and then ended with exit code -11"),
        (_RAISED, 1, None, "failed", "ValueError: x"),
        (_RAISED, 1, "cancel", "failed", "ValueError: x"),
        (_CANCELLED, -15, "cancel", "cancelled", "cancelled"),
        (_CANCELLED, -15, "driver", "cancelled", "cancelled: its driver ended"),
        (_CANCELLED, -15, "timeout", "failed", "ran longer than its own timeout of 7 s"),
        (_CANCELLED, -15, None, "failed", "killed by SIGTERM, which nobody asked for"),
        ({**_CANCELLED, "error": "OSError: y"}, -15, "cancel", "cancelled", "cancelled; it ended with OSError: y"),
        (None, -9, "cancel", "cancelled", "cancelled"),
        (None, -9, "timeout", "failed", "ran longer than its own timeout of 7 s"),
        (None, -9, "driver", "cancelled", "cancelled: its driver ended"),
        (None, -9, None, "failed", "killed by SIGKILL, which nobody asked for"),
        (None, -64, None, "failed", "killed by "),
        (None, 0, None, "failed", "ended with exit code 0 and left no word of how"),
        ({}, 3, None, "failed", "ended with exit code 3 and left no word of how"),
        (None, 75, None, "failed", "ended itself: its driver was gone"),
    ],
)
def test_the_end_of_a_replica_is_judged_by_its_words_its_exit_code_and_what_was_asked(
    outcome: dict[str, Any] | None, exit_code: int, asked: str | None, status: str, error: str | None
) -> None:
    row = judge(outcome, exit_code, asked=asked, timeout_s=7)
    assert (row["status"], row["exit_code"]) == (status, exit_code)
    assert row["error"] == error if error is None else row["error"].startswith(error)
    assert row["result"] == (5 if status == "succeeded" else None)


@pytest.mark.parametrize(
    ("outcome", "exit_code", "asked", "preempted"),
    [
        (None, -9, None, True),
        (_CANCELLED, -15, None, True),
        (None, 75, None, True),
        (_RAISED, 75, None, True),
        (None, -9, "cancel", False),
        (None, -9, "timeout", False),
        (None, -11, None, False),
        (_RAISED, 1, None, False),
        (_RETURNED, 0, None, False),
    ],
)
def test_who_was_ended_from_outside_was_preempted(
    outcome: dict[str, Any] | None, exit_code: int, asked: str | None, preempted: bool
) -> None:
    assert judge(outcome, exit_code, asked=asked, timeout_s=7)["preempted"] is preempted


def test_a_row_that_no_file_could_hold_is_told_whole_if_it_is_small() -> None:
    """A success as it is; any other end with what else went wrong."""
    row = judge(_RETURNED, 0, asked=None, timeout_s=7)
    assert tell_unrecorded(row, "in /d: disk full") == row
    row = judge(_RAISED, 1, asked=None, timeout_s=7)
    error = "ValueError: x; its end could not be recorded in /d: disk full"
    assert tell_unrecorded(row, "in /d: disk full") == {**row, "error": error}


def test_a_row_that_no_file_could_hold_loses_what_is_too_large_to_be_told() -> None:
    """The traceback first; a success whose result is lost is none."""
    row = judge({**_RAISED, "traceback": "x" * 10_000}, 1, asked=None, timeout_s=7)
    told = tell_unrecorded(row, "in /d: disk full")
    assert (told["traceback"], told["status"]) == (None, "failed")
    assert told["error"].startswith("ValueError: x; its end could not be recorded")
    row = judge({**_RETURNED, "result": "x" * 10_000}, 0, asked=None, timeout_s=7)
    told = tell_unrecorded(row, "in /d: disk full")
    assert (told["result"], told["status"]) == (None, "failed")
    assert told["error"] == "returned, but its result of 10002 bytes could not be recorded in /d: disk full"
