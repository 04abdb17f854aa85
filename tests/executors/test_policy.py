from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from aiodiloco.executors import Decision, Executor, FailFast, Policy, Quorum, Respawn, WaitAll
from aiodiloco.executors.policy import has_succeeded, policy_from_dict, policy_to_dict
from aiodiloco.records import ReplicaResult, ReplicaStatus

from .scripted import ScriptedBackend

if TYPE_CHECKING:
    from collections.abc import Callable


def _group(states: str) -> list[ReplicaResult | None]:
    """One letter per replica: `.` not ended, `s` succeeded, `f` failed, `c` cancelled."""
    status = {"s": ReplicaStatus.succeeded, "f": ReplicaStatus.failed, "c": ReplicaStatus.cancelled}
    rows: list[ReplicaResult | None] = []
    for rank, letter in enumerate(states):
        error = "OSError: x" if letter == "f" else None
        rows.append(None if letter == "." else ReplicaResult(rank, status[letter], error=error))
    return rows


@pytest.mark.parametrize(
    ("policy", "states", "cancelled", "reason"),
    [
        (FailFast(), "", set(), ""),
        (FailFast(), "....", set(), ""),
        (FailFast(), "s..s", set(), ""),
        (FailFast(), "ssss", set(), ""),
        (FailFast(), ".f.s", {0, 2}, "rank 1 failed: OSError: x"),
        (FailFast(), ".c..", {0, 2, 3}, "rank 1 cancelled"),
        (FailFast(), "c.f.", {1, 3}, "rank 2 failed: OSError: x"),
        (FailFast(), "ffff", set(), "rank 0 failed: OSError: x"),
        (WaitAll(), "....", set(), ""),
        (WaitAll(), ".f.c", set(), ""),
        (WaitAll(), "ffff", set(), ""),
        (Quorum(2), "....", set(), ""),
        (Quorum(2), "s.f.", set(), ""),
        (Quorum(2), "s.s.", {1, 3}, "2 replicas have succeeded, and more are not needed"),
        (Quorum(2, rest="wait"), "s.s.", set(), ""),
        (Quorum(2), "fsfs", set(), "2 replicas have succeeded, and more are not needed"),
        (
            Quorum(2),
            "fcf.",
            {3},
            "2 of 4 replicas cannot succeed any more: 3 did not (rank 0: OSError: x)",
        ),
        (Quorum(2, rest="wait"), "sff.", set(), ""),
        (Quorum(5), "....", {0, 1, 2, 3}, "5 of 4 replicas cannot succeed any more: 0 did not"),
    ],
)
def test_what_each_policy_does_about_a_group(policy: Policy, states: str, cancelled: set[int], reason: str) -> None:
    assert policy.decide(_group(states)) == Decision(cancel=frozenset(cancelled), reason=reason)


@pytest.mark.parametrize(
    ("ends", "pause_s"),
    [
        ("f", 1.0),
        ("p", 1.0),
        ("ff", 2.0),
        ("fff", None),
        ("ppp", 4.0),
        ("pppp", None),
        ("pfpfp", 16.0),
        ("ffppp", 16.0),
        ("", None),
        ("c", None),
        ("s", None),
    ],
)
def test_how_often_and_when_a_rank_is_started_again(ends: str, pause_s: float | None) -> None:
    policy = Respawn(max_restarts=2, max_preemptions=3, backoff=1.0)
    rows = []
    for letter in ends:
        [row] = _group("f" if letter == "p" else letter)
        assert row is not None
        rows.append(dataclasses.replace(row, preempted=letter == "p"))
    assert policy.pause_s(rows) == pause_s


def test_pauses_do_not_grow_without_end() -> None:
    [row] = _group("f")
    assert row is not None
    assert Respawn(max_restarts=10**6).pause_s([row] * 5000) == 60.0


@pytest.mark.parametrize(
    ("policy", "states", "outcome"),
    [
        (FailFast(), "ss", True),
        (FailFast(), "sc", False),
        (WaitAll(), "sf", False),
        (Quorum(1), "sf", True),
        (Quorum(1), "cf", False),
        (Respawn(), "ss", True),
        (Respawn(), "sf", False),
        (Respawn(then=Quorum(1)), "sf", True),
    ],
)
def test_what_counts_as_success(policy: Policy | Respawn, states: str, outcome: bool) -> None:
    rows = [row for row in _group(states) if row is not None]
    assert has_succeeded(policy, rows) is outcome  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy", [FailFast(), WaitAll(), Quorum(3, rest="wait"), Respawn(1, 2, 0.5, then=Quorum(1)), Respawn()], ids=repr
)
def test_a_policy_travels_as_json(policy: Policy | Respawn) -> None:
    assert policy_from_dict(json.loads(json.dumps(policy_to_dict(policy)))) == policy  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quorum(0), "k of a Quorum must be an int >= 1, not 0"),
        (lambda: Quorum(True), "k of a Quorum"),
        (lambda: Quorum(1, rest="leave"), 'rest of a Quorum must be "cancel" or "wait"'),
        (lambda: Respawn(max_restarts=-1), "max_restarts of a Respawn must be an int >= 0, not -1"),
        (lambda: Respawn(max_preemptions=1.5), "max_preemptions of a Respawn"),
        (lambda: Respawn(backoff=float("nan")), "backoff of a Respawn must be a finite number of seconds >= 0"),
        (lambda: Respawn(then=Respawn()), "then of a Respawn must be FailFast, WaitAll or Quorum"),
        (lambda: policy_from_dict({"kind": "Mine"}), "policy 'Mine' is not known to this version"),
    ],
)
def test_bad_policies_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        make()


async def test_collecting_refuses_a_policy_that_would_start_replicas() -> None:
    with pytest.raises(TypeError, match=r"takes no Respawn: run them with aiodiloco.launch"):
        await Executor(ScriptedBackend()).collect([], policy=Respawn())  # type: ignore[arg-type]
