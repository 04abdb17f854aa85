"""Connections that wait for their next request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodiloco.store.s3.http.connect import Origin
    from aiodiloco.store.s3.http.connection import Connection

__all__ = ["IdleConnections"]


class IdleConnections:
    """The idle connections of each origin, last used first.

    Only idle ones are counted: taking from here never waits, so that a caller who holds many responses unread cannot
    lock itself out. What is given back beyond `max_idle` is closed.
    """

    def __init__(self, max_idle: int, keep_s: float) -> None:
        self._max_idle = max_idle
        self._keep_s = keep_s
        self._idle: dict[Origin, list[tuple[Connection, float]]] = {}
        self._closed = False

    def take(self, origin: Origin) -> Connection | None:
        """Return a connection that still stands, or None. Those that waited too long are closed on the way."""
        idle = self._idle.get(origin, [])
        while idle:
            connection, since = idle.pop()
            if time.monotonic() - since < self._keep_s and connection.is_usable():
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose exchange is complete."""
        idle = self._idle.setdefault(origin, [])
        if self._closed or len(idle) >= self._max_idle:
            connection.close()
        else:
            idle.append((connection, time.monotonic()))

    def close(self) -> None:
        """Close them all, and whatever is given back later."""
        self._closed = True
        for idle in self._idle.values():
            for connection, _ in idle:
                connection.close()
        self._idle.clear()
