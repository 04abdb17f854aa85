from __future__ import annotations

import pytest

from aiodiloco.executors import Decision, FailFast, Policy, WaitAll
from aiodiloco.records import ReplicaResult, ReplicaStatus


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
    ],
)
def test_what_each_policy_does_about_a_group(policy: Policy, states: str, cancelled: set[int], reason: str) -> None:
    assert policy.decide(_group(states)) == Decision(cancel=frozenset(cancelled), reason=reason)
