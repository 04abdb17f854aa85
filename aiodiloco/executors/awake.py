"""Keep an event loop that only waits open to signals."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["awake"]

_TICK_S = 0.2


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Wake the event loop five times a second as long as the block lasts.

    Python runs a signal handler at once, but what the handler has scheduled waits until the event loop wakes. A
    Jupyter kernel cancels a cell that way, so its Stop would reach a group of replicas only when one of them ends.
    (`asyncio.run` wakes its event loop itself.) Only the main thread hears of signals, so others are left asleep.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # who needs asyncio says so with the remedy
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with contextlib.closing(_Ticker(loop)):
        yield


class _Ticker:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tick()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def close(self) -> None:
        self._timer.cancel()
