"""A place in a queue, for a task of any event loop and thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ticket", "call_in"]


class Ticket:
    """What one task waits for, and another grants.

    Attributes:
        is_granted: Whether it has been granted, even if the task has not run since.
    """

    def __init__(self) -> None:
        self.is_granted = False
        self._loop = asyncio.get_running_loop()
        self._is_worth_it: asyncio.Future[bool] = self._loop.create_future()

    def grant(self) -> bool:
        """Let the task go on; False if nobody can wait any more, because its event loop is closed. From any thread."""
        try:
            call_in(self._loop, self._settle)
        except RuntimeError:
            return False
        self.is_granted = True
        return True

    def drop(self) -> None:
        """Have the task not wait any longer. In its own event loop."""
        self._settle(is_worth_it=False)

    def _settle(self, *, is_worth_it: bool = True) -> None:
        if not self._is_worth_it.done():
            self._is_worth_it.set_result(is_worth_it)

    async def wait(self) -> bool:
        """Return True once it is granted, or False once it is dropped; if both, what came first."""
        return await self._is_worth_it


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Have an event loop call `function` soon. From any thread.

    In its own thread without the system call that wakes it: during that, another thread takes the interpreter's lock.

    Raises:
        RuntimeError: it is closed.
    """
    call = loop.call_soon if _running_loop() is loop else loop.call_soon_threadsafe
    call(function)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
