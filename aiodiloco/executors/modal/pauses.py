"""Pauses between attempts."""

from __future__ import annotations

import anyio

__all__ = ["Pauses"]

_FIRST_S = 0.1
_LONGEST_S = 2.0


class Pauses:
    """Ever longer pauses: 0.1 s, and each twice the last, up to 2 s."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S

    async def wait(self) -> None:
        """Sleep for the next pause."""
        await anyio.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, _LONGEST_S)
