"""A bell that is heard also by one who was busy when it rang."""

from __future__ import annotations

import time

import anyio

__all__ = ["Wakeup"]


class Wakeup:
    """For one waiter, in one event loop."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._event.set()

    async def wait_until(self, deadline: float) -> None:
        """Return when it has rung since the last wait, or once `time.monotonic()` has reached `deadline`."""
        with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
            await self._event.wait()
        self._event = anyio.Event()
