"""Calls from sync training code into the event loop of its network thread."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Callable

    from anyio.from_thread import BlockingPortal

__all__ = ["NetworkThread"]

T = TypeVar("T")

_CANCEL_BOUND_S = 15.0


class NetworkThread:
    """Waits for coroutines that run in another thread's event loop, and takes them along when it is interrupted."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._pid = os.getpid()
        self._error: Exception | None = None
        self._in_flight: set[concurrent.futures.Future[Any]] = set()

    def interrupt(self, error: Exception) -> None:
        """Have the calls that wait, and all to come, raise `error`. From any thread."""
        self._error = error
        for future in list(self._in_flight):
            future.cancel()

    def check(self) -> None:
        """Raise what the thread was interrupted with, if it was."""
        if self._error is not None:
            raise self._error

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Return what `function` returned.

        Ctrl-C and the like cancel it and wait for its end, up to 15 s, before they go on: nothing changes the model
        behind the back of whoever handles the interruption.

        Raises:
            RuntimeError: in a forked child, which has no such thread.
            LeaseExpiredError, or whatever it was interrupted with.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("this process was forked after joining and has no network thread: join in the child")
        self.check()
        ended = threading.Event()

        async def run() -> T:
            try:
                return await function()
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        self._in_flight.add(future)
        try:
            self.check()  # again: an interruption may have missed the future
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_CANCEL_BOUND_S)
            self.check()
            raise
        finally:
            self._in_flight.discard(future)
