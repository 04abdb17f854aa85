"""What to do about the group when replicas have ended: pure decisions, carried out by `collect` and by runs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from aiodiloco.records import ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Decision",
    "FailFast",
    "KnownPolicy",
    "Policy",
    "Quorum",
    "Respawn",
    "RunPolicy",
    "WaitAll",
    "has_succeeded",
    "policy_from_dict",
    "policy_to_dict",
]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a policy wants done now.

    Attributes:
        cancel: Positions in the group of the replicas to cancel; those that ended or were asked before are ignored.
        reason: Why, for the results of the cancelled ones.
    """

    cancel: frozenset[int] = frozenset()
    reason: str = ""


class Policy(Protocol):
    """A pure function from what is known of a group to what to do about it.

    Asked again whenever a replica has ended, with everything known; so it needs no state and no clock.
    """

    def decide(self, group: Sequence[ReplicaResult | None]) -> Decision:
        """Return what to do now.

        Args:
            group: One entry per handle, in order: how it ended, or None while it has not.
        """
        ...


@dataclasses.dataclass(frozen=True)
class WaitAll:
    """Wait for every replica, whatever the others do."""

    def decide(self, group: Sequence[ReplicaResult | None]) -> Decision:
        """Return the empty decision."""
        del group
        return Decision()


@dataclasses.dataclass(frozen=True)
class FailFast:
    """Cancel all others as soon as one replica has ended without succeeding."""

    def decide(self, group: Sequence[ReplicaResult | None]) -> Decision:
        """Return "cancel the rest" if any replica failed or was cancelled."""
        bad = [row for row in group if row is not None and row.status is not ReplicaStatus.succeeded]
        if not bad:
            return Decision()
        cause = next((row for row in bad if row.status is ReplicaStatus.failed), bad[0])
        detail = f": {cause.error}" if cause.status is ReplicaStatus.failed and cause.error else ""
        return Decision(
            cancel=frozenset(index for index, row in enumerate(group) if row is None),
            reason=f"rank {cause.rank} {cause.status}{detail}",
        )


@dataclasses.dataclass(frozen=True)
class Quorum:
    """Be content with `k` replicas that succeed; end the others as soon as `k` have, or no longer can.

    Attributes:
        k: How many must succeed.
        rest: What happens to the others once `k` have succeeded: `"cancel"` ends them, `"wait"` lets them finish.
    """

    k: int
    rest: Literal["cancel", "wait"] = "cancel"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k of a Quorum must be an int >= 1, not {self.k!r}")
        if self.rest not in ("cancel", "wait"):
            raise ValueError(f'rest of a Quorum must be "cancel" or "wait", not {self.rest!r}')

    def decide(self, group: Sequence[ReplicaResult | None]) -> Decision:
        """Return "cancel the rest" if `k` succeeded and the rest is not wanted, or if `k` are out of reach."""
        rest = frozenset(index for index, row in enumerate(group) if row is None)
        bad = [row for row in group if row is not None and row.status is not ReplicaStatus.succeeded]
        if len(group) - len(bad) < self.k:
            cause = f" (rank {bad[0].rank}: {bad[0].error})" if bad else ""
            reason = f"{self.k} of {len(group)} replicas cannot succeed any more: {len(bad)} did not{cause}"
            return Decision(rest, reason)
        if len(group) - len(bad) - len(rest) >= self.k and self.rest == "cancel":
            return Decision(rest, f"{self.k} replicas have succeeded, and more are not needed")
        return Decision()


KnownPolicy: TypeAlias = FailFast | WaitAll | Quorum


@dataclasses.dataclass(frozen=True)
class Respawn:
    """Start replicas again that did not succeed, and apply another policy to those that came too often.

    For `aiodiloco.launch`: what only collects cannot start anything. A replica that was preempted (its container or
    machine was lost, it was killed from outside) is no failure of the training, so these are counted apart. A replica
    that somebody cancelled is not started again.

    Attributes:
        max_restarts: How often a rank is started again after failures: exceptions, exit codes.
        max_preemptions: How often after preemptions.
        backoff: Seconds before the first new start of a rank; doubled for each further one, up to a minute.
        then: What decides about a rank once it may not be started again.
    """

    max_restarts: int = 3
    max_preemptions: int = 20
    backoff: float = 1.0
    then: KnownPolicy = FailFast()

    def __post_init__(self) -> None:
        for name in ("max_restarts", "max_preemptions"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} of a Respawn must be an int >= 0, not {value!r}")
        is_number = isinstance(self.backoff, int | float) and not isinstance(self.backoff, bool)
        if not is_number or not 0 <= self.backoff < math.inf:
            raise ValueError(f"backoff of a Respawn must be a finite number of seconds >= 0, not {self.backoff!r}")
        if not isinstance(self.then, KnownPolicy):
            raise TypeError(f"then of a Respawn must be FailFast, WaitAll or Quorum, not {self.then!r}")

    def pause_s(self, ends: Sequence[ReplicaResult]) -> float | None:
        """Return how long to wait before a rank is started again, or None if it is not to be.

        Args:
            ends: How all processes of this rank ended, the latest last.
        """
        if not ends or ends[-1].status is not ReplicaStatus.failed:
            return None
        num_preemptions = sum(row.preempted for row in ends)
        num_failures = sum(row.status is ReplicaStatus.failed for row in ends) - num_preemptions
        if num_failures > self.max_restarts or num_preemptions > self.max_preemptions:
            return None
        return min(60.0, self.backoff * 2.0 ** min(len(ends) - 1, 30))


RunPolicy: TypeAlias = KnownPolicy | Respawn

_KNOWN: dict[str, type[RunPolicy]] = {kind.__name__: kind for kind in (FailFast, WaitAll, Quorum, Respawn)}


def has_succeeded(policy: RunPolicy, group: Sequence[ReplicaResult]) -> bool:
    """Return whether a group that has ended did what this policy asks for."""
    num_succeeded = sum(row.status is ReplicaStatus.succeeded for row in group)
    goal = policy.then if isinstance(policy, Respawn) else policy
    return num_succeeded >= (goal.k if isinstance(goal, Quorum) else len(group))


def policy_to_dict(policy: RunPolicy) -> dict[str, Any]:
    """Return the policy as JSON values, for another process to go on with."""
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    if isinstance(policy, Respawn):
        fields["then"] = policy_to_dict(policy.then)
    return {"kind": type(policy).__name__, **fields}


def policy_from_dict(fields: Mapping[str, Any]) -> RunPolicy:
    """Return the policy that `policy_to_dict` wrote. Raises ValueError or TypeError if it is none."""
    rest = {name: value for name, value in fields.items() if name != "kind"}
    if fields.get("kind") not in _KNOWN:
        raise ValueError(f"policy {fields.get('kind')!r} is not known to this version: {sorted(_KNOWN)}")
    if "then" in rest:
        rest["then"] = policy_from_dict(rest["then"])
    return _KNOWN[fields["kind"]](**rest)
