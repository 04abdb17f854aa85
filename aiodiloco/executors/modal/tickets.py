"""A place in a queue, for a task of any event loop and thread."""

from __future__ import annotations

import asyncio

import anyio

__all__ = ["Ticket"]


class Ticket:
    """What one task waits for, and another grants.

    Attributes:
        is_granted: Whether it has been granted, even if the task has not run since.
    """

    def __init__(self) -> None:
        self.is_granted = False
        self._loop = asyncio.get_running_loop()
        self._event = anyio.Event()

    def grant(self) -> bool:
        """Let the task go on; False if nobody can wait any more, because its event loop is closed. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            return False
        self.is_granted = True
        return True

    async def wait(self) -> None:
        """Return once it is granted."""
        await self._event.wait()
