"""File work in worker threads that cancellation stops, without touching a buffer after the caller has it back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import to_thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AbandonedError", "Ticket", "run_in_worker"]

T = TypeVar("T")

_STOP_WAIT_S = 5.0  # a slice of a file takes milliseconds; only a dead disk reaches this bound


class AbandonedError(Exception):
    """Raised inside the worker thread when nobody waits for its work any more; no caller ever sees it."""


class Ticket:
    """What the waiting task and its worker thread know of each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self._running = False

    def check(self) -> None:
        """Raise AbandonedError if the waiting task has gone. The thread calls this before each step that shows."""
        if self._abandoned:
            raise AbandonedError

    def begin(self) -> None:
        """Mark the work as running, unless it was abandoned before it began."""
        with self._lock:
            self.check()
            self._running = True

    def end(self) -> None:
        """Mark the work as over: the thread touches no buffer from here on."""
        self._running = False

    def abandon(self) -> None:
        """Ask the thread to stop at its next check."""
        with self._lock:
            self._abandoned = True

    @property
    def running(self) -> bool:
        """True from `begin` to `end`."""
        return self._running


async def run_in_worker(
    work: Callable[[Ticket], T], limiter: anyio.CapacityLimiter, *, stop_wait_s: float | None = None
) -> T:
    """Return `work(ticket)`, run in a worker thread.

    When the calling task is cancelled, also by `asyncio.Task.cancel`, from which anyio's own shield does not protect,
    the thread is asked to stop and waited for, up to `stop_wait_s` (5 s): buffers are the caller's again after that.
    """
    ticket = Ticket()

    def body() -> T:
        ticket.begin()
        try:
            return work(ticket)
        finally:
            ticket.end()

    try:
        return await to_thread.run_sync(body, abandon_on_cancel=True, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        ticket.abandon()
        with anyio.move_on_after(_STOP_WAIT_S if stop_wait_s is None else stop_wait_s, shield=True):
            while ticket.running:  # noqa: ASYNC110 - a thread cannot set the event of a loop that may be gone
                await anyio.sleep(0.001)
        raise
