"""The end of a replica, for all tasks that wait for it: who learns of it first tells the others."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodiloco.records import ReplicaResult

__all__ = ["Ends", "Waiter"]


@dataclasses.dataclass(eq=False)
class Waiter:
    """One task that waits, in whatever event loop.

    Attributes:
        scope: Cancelled when another task has learnt of the end; the waiter puts it around what that should interrupt.
        row: How the replica ended, as the other task told.
    """

    scope: anyio.CancelScope
    loop: asyncio.AbstractEventLoop
    row: ReplicaResult | None = None

    def interrupt(self) -> None:
        """Cancel what the waiter does now. In its event loop."""
        self.scope.cancel()


class Ends:
    """Knows who waits for which call, and keeps nothing beyond that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[Waiter]] = {}
        self._num = 0

    @property
    def num_waiters(self) -> int:
        """How many tasks wait."""
        return self._num

    @contextlib.contextmanager
    def waiting(self, call_id: str) -> Iterator[Waiter]:
        """Be told of the call's end as long as the block lasts."""
        waiter = Waiter(anyio.CancelScope(), asyncio.get_running_loop())
        with self._lock:
            self._num += 1
            self._waiters.setdefault(call_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._num -= 1
                self._waiters[call_id].discard(waiter)
                if not self._waiters[call_id]:
                    del self._waiters[call_id]

    def tell(self, call_id: str, row: ReplicaResult) -> None:
        """Tell all who wait for this call."""
        with self._lock:
            waiters = list(self._waiters.get(call_id, ()))
        for waiter in waiters:
            waiter.row = row
            with contextlib.suppress(RuntimeError):  # its event loop is closed, so nobody waits there
                waiter.loop.call_soon_threadsafe(waiter.interrupt)
