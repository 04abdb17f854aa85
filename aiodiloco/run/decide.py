"""What to do about a run now: a pure function of its attempts, its policy and clock readings."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from aiodiloco.executors.policy import Respawn
from aiodiloco.records import ReplicaResult, ReplicaStatus
from aiodiloco.run.journal import Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiodiloco.executors.policy import RunPolicy
    from aiodiloco.run.record import RunRecord

__all__ = ["TIMEOUT_REASON", "Actions", "Attempt", "decide", "due_at_s", "final_rows", "why_stop"]


TIMEOUT_REASON = "the run's timeout"
"""How the reason of a run begins that was ended by its deadline."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process of one rank, as its driver knows it.

    Attributes:
        slot: Which.
        row: How it ended, or None while it starts or runs.
        ended_s: When it ended, on the run's clock.
        is_unknown: Nobody knows whether it was started, for its driver died meanwhile. Counts for nothing; the rank is
            started anew.
    """

    slot: Slot
    row: ReplicaResult | None = None
    ended_s: float = 0.0
    is_unknown: bool = False


@dataclasses.dataclass(frozen=True)
class Actions:
    """What to do now.

    Attributes:
        cancel: Processes to end; those that were asked before are ignored.
        reason: Why.
        start: Processes to start now.
        look_again_s: When to decide again at the latest, on the run's clock, if nothing happens before.
        ended: Why the run is over; None while it goes on.
    """

    cancel: frozenset[Slot] = frozenset()
    reason: str = ""
    start: frozenset[Slot] = frozenset()
    look_again_s: float = math.inf
    ended: str | None = None


def decide(
    attempts: Sequence[Attempt], n_replicas: int, policy: RunPolicy, *, now_s: float, stop: str | None
) -> Actions:
    """Return what to do now.

    Args:
        attempts: All there have been; at least one per rank.
        n_replicas: How many ranks.
        policy: The run's.
        now_s: The run's clock.
        stop: Why everything is to be ended, or None.
    """
    ranks = _by_rank(attempts, n_replicas)
    running = {rank: own[-1].slot for rank, own in ranks.items() if own[-1].row is None}
    if stop is not None:
        return Actions(frozenset(running.values()), stop, ended=None if running else stop)
    due = {rank: at_s for rank, own in ranks.items() if (at_s := _restart_at_s(own, policy)) is not None}
    rows = [None if rank in running or rank in due else own[-1].row for rank, own in ranks.items()]
    inner = policy.then if isinstance(policy, Respawn) else policy
    decision = inner.decide(rows)
    due = {rank: at_s for rank, at_s in due.items() if rank not in decision.cancel}
    if not running and not due:
        return Actions(reason=decision.reason, ended=decision.reason or "every replica has ended")
    return Actions(
        cancel=frozenset(slot for rank, slot in running.items() if rank in decision.cancel),
        reason=decision.reason,
        start=frozenset(_next_slot(ranks[rank]) for rank, at_s in due.items() if at_s <= now_s),
        look_again_s=min((at_s for at_s in due.values() if at_s > now_s), default=math.inf),
    )


def why_stop(record: RunRecord, *, elapsed_s: float, spent_gpu_s: float) -> str | None:
    """Return why the run must be ended now, or None while it is within its bounds."""
    if elapsed_s >= record.timeout_s:
        return f"{TIMEOUT_REASON} of {record.timeout_s:g} s passed"
    if record.max_gpu_seconds is not None and spent_gpu_s >= record.max_gpu_seconds:
        return f"the run's budget of {record.max_gpu_seconds:g} GPU seconds is spent"
    return None


def due_at_s(record: RunRecord, *, elapsed_s: float, spent_gpu_s: float, num_running: int) -> float:
    """Return when `why_stop` will have a reason at the latest, on the run's clock, if as many replicas run on."""
    rate = num_running * record.gpus_per_replica
    if record.max_gpu_seconds is None or rate == 0:
        return record.timeout_s
    return min(record.timeout_s, elapsed_s + max(0.0, record.max_gpu_seconds - spent_gpu_s) / rate)


def final_rows(attempts: Sequence[Attempt], n_replicas: int) -> tuple[ReplicaResult, ...]:
    """Return one row per rank: how its latest process ended. Only when all have."""
    rows = [own[-1].row for own in _by_rank(attempts, n_replicas).values()]
    assert None not in rows
    return tuple(row for row in rows if row is not None)


def _by_rank(attempts: Sequence[Attempt], n_replicas: int) -> Mapping[int, list[Attempt]]:
    ranks: dict[int, list[Attempt]] = {rank: [] for rank in range(n_replicas)}
    for attempt in sorted(attempts, key=lambda attempt: attempt.slot):
        ranks[attempt.slot.rank].append(attempt)
    assert all(ranks.values()), "every rank has been about to start once: run.json says so"
    return ranks


def _restart_at_s(own: Sequence[Attempt], policy: RunPolicy) -> float | None:
    """Return when this rank is to be started again, or None if it runs or is not to be."""
    latest = own[-1]
    if latest.row is None:
        return None
    if latest.is_unknown:
        return latest.ended_s
    if not isinstance(policy, Respawn) or latest.row.status is not ReplicaStatus.failed:
        return None
    pause_s = policy.pause_s([attempt.row for attempt in own if attempt.row is not None and not attempt.is_unknown])
    return None if pause_s is None else latest.ended_s + pause_s


def _next_slot(own: Sequence[Attempt]) -> Slot:
    return Slot(own[-1].slot.rank, own[-1].slot.incarnation + 1)
