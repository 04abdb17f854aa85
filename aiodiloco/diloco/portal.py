"""Calls from sync training code into the event loop of its network thread."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
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

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Return what `function` returned.

        Ctrl-C and the like cancel it and wait for its end, up to 15 s, before they go on: nothing changes the model
        behind the back of whoever handles the interruption.

        Raises:
            RuntimeError: in a forked child, which has no such thread.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("this process was forked after joining and has no network thread: join in the child")
        ended = threading.Event()

        async def run() -> T:
            try:
                return await function()
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_CANCEL_BOUND_S)
            raise
