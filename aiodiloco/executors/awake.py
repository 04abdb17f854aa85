"""Keep an event loop that only waits open to signals."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
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
    ticker = _TICKERS.get(loop)
    if ticker is None:
        ticker = _TICKERS[loop] = _Ticker()
    with ticker.ticking(loop):
        yield


class _Ticker:
    """Ticks while somebody needs it: one for each event loop, however many wait there."""

    def __init__(self) -> None:
        self._num_users = 0

    @contextlib.contextmanager
    def ticking(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        self._num_users += 1
        if self._num_users == 1:
            self._tick(loop)
        try:
            yield
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_TICK_S, self._tick, loop)


_TICKERS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Ticker] = weakref.WeakKeyDictionary()
