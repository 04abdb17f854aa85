"""Waiting for an object that another replica will write, and reading it again where it came damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio

from aiodiloco.errors import ChunkError, KeyNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodiloco.collective.meter import Meter

__all__ = ["Backoff", "Readable", "get_when_there", "read_intact"]

T = TypeVar("T")

_FIRST_S, _LONGEST_S, _GROWTH = 0.010, 0.500, 1.5
_MOST_ASKED_PER_S = 500
_MOST_READS = 6  # of which each is damaged on the way by itself; where all are, the object is


class Backoff:
    """Pauses that grow from 10 ms to 500 ms: quick when a peer is a moment behind, cheap when it is far behind.

    Args:
        num_waiting: How many ranks wait for the same thing, about. From 250 on the longest pause grows with them, so
            that all together ask 500 times a second at most.
    """

    def __init__(self, num_waiting: int = 1) -> None:
        self._next_s = _FIRST_S
        self._longest_s = max(_LONGEST_S, num_waiting / _MOST_ASKED_PER_S)

    async def pause(self) -> None:
        """Sleep, a little longer each time."""
        await anyio.sleep(self._next_s)
        self._next_s = min(self._longest_s, self._next_s * _GROWTH)


class Readable(Protocol):
    """Whatever objects can be read from: a store, or a view of one."""

    async def get(self, key: str, *, length: int | None = None, into: memoryview | None = None) -> memoryview:
        """Return the object, or `length` bytes of a longer one, in `into` if given; or raise KeyNotFoundError."""
        ...


async def get_when_there(
    store: Readable, key: str, meter: Meter, *, at_most: int, into: memoryview | None = None, num_waiting: int = 1
) -> memoryview:
    """Return the object under `key`, waiting for it to be written. The caller bounds the wait with a cancel scope.

    Of an object of more than `at_most` bytes one more than that is read, so that its reader finds it too long: what
    lies under a key may be anything, and must not fill the memory. It is read into `into`, which has that much room, or
    into new memory.
    """
    backoff = Backoff(num_waiting)
    while True:
        try:
            with meter.request("download"):
                data = await store.get(key, length=at_most + 1, into=into)
        except KeyNotFoundError:
            with meter.phase("wait"):
                await backoff.pause()
        else:
            meter.bytes_received += data.nbytes
            return data


async def read_intact(key: str, read: Callable[[], Awaitable[T]]) -> T:
    """Return `await read()`, made again some times where that raises ChunkError: a read can be damaged on its way.

    Args:
        key: What is read, to name in the error.
        read: Gets the object and checks it.

    Raises:
        ChunkError: it is the object that is damaged.
    """
    backoff = Backoff()
    for _ in range(_MOST_READS - 1):
        try:
            return await read()
        except ChunkError:
            await backoff.pause()
    try:
        return await read()
    except ChunkError as exc:
        raise ChunkError(f"{key}, read {_MOST_READS} times: {exc}") from exc
