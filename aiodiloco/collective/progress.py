"""How far a stage of the pipeline has come, for the stages that go by it."""

from __future__ import annotations

import heapq
import itertools

import anyio

__all__ = ["Progress"]


class Progress:
    """Counts what is done; tasks wait until the count reaches a point.

    Ranks do the same work in the same order, so a rank's own progress says what its peers have done: to ask for an
    object before one has written one's own counterpart finds nothing, and costs a request each time.
    """

    def __init__(self) -> None:
        self._done = 0
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._tie = itertools.count()

    def advance(self) -> None:
        """Count one more as done, and wake who waited for it."""
        self._done += 1
        while self._waiting and self._waiting[0][0] <= self._done:
            heapq.heappop(self._waiting)[2].set()

    async def reach(self, count: int) -> None:
        """Wait until `count` are done."""
        if self._done < count:
            event = anyio.Event()
            heapq.heappush(self._waiting, (count, next(self._tie), event))
            await event.wait()
