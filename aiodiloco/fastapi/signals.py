"""Hear of the end of the process before the server's own shutdown, which waits for open streams first."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["told_of_shutdown"]

_Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | signal.Handlers | None"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told_of_shutdown(begin: Callable[[], object]) -> Iterator[None]:
    """Call `begin` when the process is told to end, and then whatever was to be called before.

    Signal handlers of the server stay in force. Outside the main thread, where none can be set, this does nothing.

    Args:
        begin: Called from a signal handler, so it may do little more than `call_soon_threadsafe`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chained = {number: _chain(number, begin) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, (before, ours) in chained.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, before)


def _chain(number: int, begin: Callable[[], object]) -> tuple[_Handler, _Handler]:
    before = signal.getsignal(number)

    def handle(received: int, stack: FrameType | None) -> None:
        begin()
        if callable(before):
            before(received, stack)
        elif before is not signal.SIG_IGN:
            signal.signal(received, signal.SIG_DFL)
            signal.raise_signal(received)

    if before is None or before is signal.SIG_IGN:  # set from C, or not to be heard: leave it so
        return before, handle
    signal.signal(number, handle)
    return before, handle
