"""Waiting for an object that another replica will write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from aiodiloco.errors import KeyNotFoundError

if TYPE_CHECKING:
    from aiodiloco.collective.meter import Meter

__all__ = ["Backoff", "Readable", "get_when_there"]

_FIRST_S, _LONGEST_S, _GROWTH = 0.010, 0.500, 1.5


class Backoff:
    """Pauses that grow from 10 ms to 500 ms: quick when a peer is a moment behind, cheap when it is far behind."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S

    async def pause(self) -> None:
        """Sleep, a little longer each time."""
        await anyio.sleep(self._next_s)
        self._next_s = min(_LONGEST_S, self._next_s * _GROWTH)


class Readable(Protocol):
    """Whatever objects can be read from: a store, or a view of one."""

    async def get(self, key: str) -> memoryview:
        """Return the object, or raise KeyNotFoundError."""
        ...


async def get_when_there(store: Readable, key: str, meter: Meter) -> memoryview:
    """Return the object under `key`, waiting for it to be written. The caller bounds the wait with a cancel scope."""
    backoff = Backoff()
    while True:
        try:
            with meter.request("download"):
                data = await store.get(key)
        except KeyNotFoundError:
            with meter.phase("wait"):
                await backoff.pause()
        else:
            meter.bytes_received += data.nbytes
            return data
