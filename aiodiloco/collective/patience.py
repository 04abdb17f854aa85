"""How long a round waits for those who are late: as long as they have been late before, and not much longer."""

from __future__ import annotations

import statistics
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lateness", "patience_s"]

_HISTORY = 32  # arrivals that are remembered, of a few rounds
_DEVIATIONS = 6.0
_MAD_TO_SIGMA = 1.4826  # of normally distributed values


def patience_s(lateness: Sequence[float], floor_s: float) -> float:
    """Return how many seconds to wait for the rest of a round once a quorum is there.

    The median lateness so far, and six standard deviations as the median absolute deviation estimates them: one
    replica that died, or one very slow round, hardly moves either.

    Args:
        lateness: Seconds behind the quorum, of arrivals in earlier rounds.
        floor_s: Never wait less: what the user set.
    """
    if not lateness:
        return floor_s
    median = statistics.median(lateness)
    mad = statistics.median(abs(late - median) for late in lateness)
    return max(floor_s, median + _DEVIATIONS * _MAD_TO_SIGMA * mad)


class Lateness:
    """What one decider has seen of arrivals, on its own clock."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_HISTORY)

    def note(self, seconds: float) -> None:
        """Remember that a member came so many seconds after the quorum was there; 0 for the quorum itself."""
        self._seen.append(max(0.0, seconds))

    def patience_s(self, floor_s: float) -> float:
        """Return how long to wait now."""
        return patience_s(tuple(self._seen), floor_s)
