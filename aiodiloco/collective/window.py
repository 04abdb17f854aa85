"""How many requests to keep in flight: as many as the way to the store takes without a queue."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import KeyNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.collective.buffers import Buffers
    from aiodiloco.store import Store

__all__ = ["AdmittedReads", "Pace", "Window"]

_START = 4  # some transfer while the others wait for their answers
_FEW_QUEUED, _MANY_QUEUED = 2.0, 4.0
_JITTER = 1.25  # a request may take this much longer than the fastest without having queued


class Pace:
    """Decides the number of requests in flight from how long they take. Pure: no clock, no I/O.

    TCP Vegas's rule. With `n` requests in flight that take `s` seconds each where one alone takes `base`, about
    `n * (1 - base / s)` of them only queue. Fewer than two: the link may have room, for requests that began together
    also end together, and then it idles for a round trip. More than four: they gain nothing, and every chunk arrives
    later than it could, at the start and the end of a round most of all.

    Args:
        most: Never more than this many.
    """

    def __init__(self, most: int) -> None:
        self.limit = min(_START, most)
        self._most = most
        self._largest = 0
        self._base_s = float("inf")

    def note(self, nbytes: int, seconds: float, in_flight: int) -> None:
        """Take in one finished request: its size, its duration, and how many there were when it began."""
        if not nbytes or nbytes < self._largest:
            return  # a last, shorter chunk says nothing about the others
        if nbytes > self._largest:
            self._largest, self._base_s = nbytes, seconds
        self._base_s = min(self._base_s, seconds)
        queued = in_flight * (1 - _JITTER * self._base_s / seconds) if seconds > 0 else 0.0
        if queued < _FEW_QUEUED and in_flight >= self.limit:
            self.limit = min(self.limit + 1, self._most)
        elif queued > _MANY_QUEUED:
            self.limit = max(self.limit - 1, min(_START, self._most))


@dataclasses.dataclass
class Request:
    """One admitted request.

    Attributes:
        nbytes: Bytes it moved, to be set once it succeeded. One that moved none teaches the pace nothing.
    """

    nbytes: int = 0


class Window:
    """Admits requests one way, first come first served, as many at once as its pace allows.

    Attributes:
        nbytes: Bytes moved so far.
        busy_s: Seconds in which at least one request was under way.
    """

    def __init__(self, most: int) -> None:
        self.nbytes = 0
        self.busy_s = 0.0
        self._busy_since = 0.0
        self._pace = Pace(most)
        self._limiter = anyio.CapacityLimiter(self._pace.limit)

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[Request]:
        """Hold a place for one request while the context is open."""
        request = Request()
        async with self._hold(place=object()):
            in_flight, began = int(self._limiter.borrowed_tokens), time.perf_counter()
            yield request
            self.nbytes += request.nbytes
            self._pace.note(request.nbytes, time.perf_counter() - began, in_flight)
            self._limiter.total_tokens = self._pace.limit

    @contextlib.asynccontextmanager
    async def _hold(self, place: object) -> AsyncIterator[None]:
        await self._limiter.acquire_on_behalf_of(place)
        if self._limiter.borrowed_tokens == 1:
            self._busy_since = time.perf_counter()
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(place)
            if not self._limiter.borrowed_tokens:
                self.busy_s += time.perf_counter() - self._busy_since


class AdmittedReads:
    """A view of a store whose reads take a place in a window each, and memory only then."""

    def __init__(self, store: Store, window: Window, buffers: Buffers) -> None:
        self._store = store
        self._window = window
        self._buffers = buffers

    async def get(self, key: str, *, length: int | None = None, into: memoryview | None = None) -> memoryview:
        """Return the object, or `length` bytes of a longer one; or raise KeyNotFoundError.

        It is read into `into`, or else into memory for the caller to give back to the buffers.
        """
        async with self._window.admit() as request:
            place = self._buffers.take() if into is None else into
            try:
                data = await self._store.get(key, length=length, into=place)
            except KeyNotFoundError:
                if into is None:
                    self._buffers.give_back(place)
                raise
            request.nbytes = data.nbytes
        return data
