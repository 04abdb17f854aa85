"""What is decided about a run, as tables: no event loop, no clock."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aiodiloco.executors import FailFast, Quorum, Respawn, WaitAll
from aiodiloco.records import ReplicaResult, ReplicaStatus
from aiodiloco.run.decide import Actions, Attempt, decide, due_at_s, why_stop
from aiodiloco.run.journal import Slot

from .test_takeover import make_record

_STATUS = {
    "s": ReplicaStatus.succeeded,
    "f": ReplicaStatus.failed,
    "p": ReplicaStatus.failed,
    "c": ReplicaStatus.cancelled,
    "n": ReplicaStatus.pending,
    "u": ReplicaStatus.failed,
    "r": ReplicaStatus.running,
}


def attempts_of(*ranks: str) -> list[Attempt]:
    """One string per rank, one letter per process: `.` runs, `s`ucceeded, `f`ailed, `p`reempted, `c`ancelled, `n`ever
    started, `u`nknown, `r`unning but given up. All ended at 10 s."""
    found = []
    for rank, letters in enumerate(ranks):
        for incarnation, letter in enumerate(letters):
            row = None
            if letter != ".":
                row = ReplicaResult(rank, _STATUS[letter], error="x", preempted=letter == "p")
            found.append(Attempt(Slot(rank, incarnation), row, ended_s=10.0, is_unknown=letter == "u"))
    return found


def slots(*names: str) -> frozenset[Slot]:
    return frozenset(Slot(int(name[0]), int(name[2])) for name in names)


_RESPAWN = Respawn(max_restarts=1, max_preemptions=2, backoff=4.0)
_ENDED = "every replica has ended"
_QUORUM = "1 replicas have succeeded, and more are not needed"


def over(reason: str) -> Actions:
    """The run has ended because of what its policy decided."""
    return Actions(reason=reason, ended=reason)


_CASES: list[tuple[str, Any, tuple[str, ...], Actions]] = [
    ("all run", WaitAll(), (".", "."), Actions()),
    ("all succeeded", FailFast(), ("s", "s"), Actions(ended=_ENDED)),
    ("one runs on", WaitAll(), ("f", "."), Actions()),
    ("all ended", WaitAll(), ("f", "c"), Actions(ended=_ENDED)),
    ("a failure ends the rest", FailFast(), ("f", "."), Actions(slots("1-0"), "rank 0 failed: x")),
    ("and then the run", FailFast(), ("f", "c"), over("rank 0 failed: x")),
    ("one that is given up is bad", FailFast(), ("r", "."), Actions(slots("1-0"), "rank 0 running")),
    ("an unknown start is made anew, whatever the policy", FailFast(), ("u", "."), Actions(start=slots("0-1"))),
    ("and again", FailFast(), ("uu", "."), Actions(start=slots("0-2"))),
    ("but not when another rank has failed", FailFast(), ("u", "f"), over("rank 1 failed: x")),
    ("a failure is started again after a pause", _RESPAWN, ("f", "."), Actions(look_again_s=14.0)),
    ("a preemption too", _RESPAWN, ("p", "."), Actions(look_again_s=14.0)),
    ("after twice the pause", _RESPAWN, ("pp", "."), Actions(look_again_s=18.0)),
    ("failures and preemptions are counted apart", _RESPAWN, ("ppf", "."), Actions(look_again_s=26.0)),
    ("too many failures", _RESPAWN, ("pff", "."), Actions(slots("1-0"), "rank 0 failed: x")),
    ("too many preemptions", _RESPAWN, ("ppp", "."), Actions(slots("1-0"), "rank 0 failed: x")),
    ("unknown starts do not count", _RESPAWN, ("uuuf", "."), Actions(look_again_s=14.0)),
    ("no rank is started again when the run is failing", _RESPAWN, ("f", "ff"), over("rank 1 failed: x")),
    ("a cancelled rank is not started again", _RESPAWN, ("c", "."), Actions(slots("1-0"), "rank 0 cancelled")),
    ("one given up is not started again", _RESPAWN, ("r", "s"), over("rank 0 running")),
    ("a rank runs again", _RESPAWN, ("f.", "s"), Actions()),
    ("a rank succeeded in the end", _RESPAWN, ("fps", "s"), Actions(ended=_ENDED)),
    ("the rest of a quorum is not started again", Respawn(then=Quorum(1)), ("f", "s"), over(_QUORUM)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "ranks", "actions"), [case[1:] for case in _CASES], ids=[case[0] for case in _CASES]
)
def test_what_is_decided(policy: Any, ranks: tuple[str, ...], actions: Actions) -> None:
    assert decide(attempts_of(*ranks), len(ranks), policy, now_s=10.0, stop=None) == actions


@pytest.mark.parametrize(("now_s", "start"), [(13.9, False), (14.0, True), (1000.0, True)])
def test_a_rank_is_started_again_once_it_is_due(now_s: float, start: bool) -> None:
    actions = decide(attempts_of("f", "."), 2, _RESPAWN, now_s=now_s, stop=None)
    assert actions.start == (slots("0-1") if start else frozenset())
    assert actions.look_again_s == (math.inf if start else 14.0)


@pytest.mark.parametrize(
    ("ranks", "actions"),
    [
        (("f", "."), Actions(slots("1-0"), "time is up")),
        (("f.", "."), Actions(slots("0-1", "1-0"), "time is up")),
        (("f", "s"), over("time is up")),
        (("u", "n"), over("time is up")),
    ],
)
def test_a_run_that_is_to_end_starts_nothing_and_ends_when_all_have(ranks: tuple[str, ...], actions: Actions) -> None:
    assert decide(attempts_of(*ranks), 2, _RESPAWN, now_s=1000.0, stop="time is up") == actions


@pytest.mark.parametrize(
    ("limits", "elapsed_s", "spent_gpu_s", "reason"),
    [
        ({}, 59.9, 1e9, None),
        ({}, 60.0, 0.0, "the run's timeout of 60 s passed"),
        ({"max_gpu_seconds": 10.0}, 1.0, 9.9, None),
        ({"max_gpu_seconds": 10.0}, 1.0, 10.0, "the run's budget of 10 GPU seconds is spent"),
    ],
)
def test_bounds(limits: dict[str, Any], elapsed_s: float, spent_gpu_s: float, reason: str | None) -> None:
    assert why_stop(make_record(**limits), elapsed_s=elapsed_s, spent_gpu_s=spent_gpu_s) == reason


@pytest.mark.parametrize(
    ("limits", "num_running", "due_s"),
    [
        ({}, 3, 60.0),
        ({"max_gpu_seconds": 10.0}, 0, 60.0),
        ({"max_gpu_seconds": 10.0}, 2, 5.0 + 8.0 / 2),
        ({"max_gpu_seconds": 10.0, "gpu": "A100-80GB:4"}, 2, 5.0 + 8.0 / 8),
        ({"max_gpu_seconds": 1.0}, 2, 5.0),
        ({"max_gpu_seconds": 1e6}, 2, 60.0),
    ],
)
def test_when_bounds_are_reached(limits: dict[str, Any], num_running: int, due_s: float) -> None:
    record = make_record(**limits)
    assert due_at_s(record, elapsed_s=5.0, spent_gpu_s=2.0, num_running=num_running) == due_s
