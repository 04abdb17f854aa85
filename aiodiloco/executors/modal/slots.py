"""A bound on requests under way, for tasks of any event loop and thread."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from aiodiloco.executors.modal.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Slots"]


class Slots:
    """At most `size` holders at once; first come, first served.

    Not anyio's CapacityLimiter, which belongs to one event loop: an executor may be used from several.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._free = size
        self._queue: deque[Ticket] = deque()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold a slot; waits until one is free."""
        await self.acquire()
        try:
            yield
        finally:
            self.release()

    async def acquire(self) -> None:
        """Take a slot; waits until one is free. A wait that is cancelled has taken none."""
        ticket = self._take()
        try:
            if ticket is not None:
                await ticket.wait()
        except BaseException:
            self._withdraw(ticket)
            raise

    def _take(self) -> Ticket | None:
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            ticket = Ticket()
            self._queue.append(ticket)
            return ticket

    def _withdraw(self, ticket: Ticket | None) -> None:
        with self._lock:
            if ticket is not None and not ticket.is_granted:
                self._queue.remove(ticket)
                return
        self.release()

    def release(self) -> None:
        """Give a slot back, to who has waited longest."""
        with self._lock:
            while self._queue:
                if self._queue.popleft().grant():
                    return
            self._free += 1
