"""What to do about the group when replicas have ended: pure decisions, carried out by `collect`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from aiodiloco.records import ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Decision", "FailFast", "Policy", "WaitAll"]


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
