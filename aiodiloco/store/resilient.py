"""`ResilientStore`: the same store, with patience for one that fails for the moment."""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING, Self, TypeVar

import anyio

from aiodiloco.errors import KeyNotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from aiodiloco.store.base import Buffer, Store

__all__ = ["ResilientStore"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_S, _LONGEST_S, _GROWTH = 0.02, 5.0, 1.5  # gentle: one unlucky request in a thousand holds up a round
_COMPLAIN_AFTER_S, _COMPLAIN_EVERY_S = 10.0, 30.0
_LOOKS = 6  # a read may be damaged on its way; six in a row are not


class ResilientStore:
    """A `Store` that repeats each request that ended in a `StoreUnavailableError`, until it succeeds.

    Repeating is safe: objects are written whole, a missing key may be deleted, and a listing goes on after the last key
    it gave. Only `put_if_absent` needs care, when its first attempt may have been carried out and the reply lost: then
    a second one finds the object there, and it is this caller's exactly if it holds this caller's bytes. So where
    it matters who won, put something into `data` that no one else would.

    Pauses between attempts grow from 20 ms to 5 s, each shortened by up to half at random, so that replicas which
    failed together do not come back together. Other errors pass through at once.

    Args:
        store: What to ask. Entered and left with this.
        patience_s: Seconds after which a failing request is given up and its error raised; without one, only the
            caller's cancel scope ends it.
        jitter: Source of the random part of pauses; give a seeded one to repeat a schedule exactly.
    """

    def __init__(self, store: Store, *, patience_s: float = math.inf, jitter: random.Random | None = None) -> None:
        if not patience_s >= 0:
            raise ValueError(f"patience_s must be a number of seconds >= 0, not {patience_s!r}")
        self._store = store
        self._patience_s = patience_s
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._complained_at = -math.inf

    @property
    def uri(self) -> str:
        """The URI of the store underneath."""
        return self._store.uri

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        return await self._repeat(lambda: self._store.get(key, start=start, length=length, into=into))

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        await self._repeat(lambda: self._store.put(key, data))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        attempts = _Attempts(self)
        while True:
            try:
                written = await self._store.put_if_absent(key, data)
            except StoreUnavailableError as exc:
                await attempts.pause(exc)
            else:
                return written or (attempts.num_failed > 0 and await self._holds(key, data))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        attempts = _Attempts(self)
        while True:
            try:
                async for key in self._store.list(prefix, start_after=start_after):
                    yield key
                    start_after, attempts = key, _Attempts(self)
            except StoreUnavailableError as exc:
                await attempts.pause(exc)
            else:
                return

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        await self._repeat(lambda: self._store.delete(key))

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._store.__aexit__(exc_type, exc, tb)

    async def _repeat(self, request: Callable[[], Awaitable[T]]) -> T:
        attempts = _Attempts(self)
        while True:
            try:
                return await request()
            except StoreUnavailableError as exc:
                await attempts.pause(exc)

    async def _holds(self, key: str, data: Buffer) -> bool:
        """Return whether the object is `data`; a read that differs is repeated, for the read itself may be wrong."""
        for _ in range(_LOOKS):
            try:
                if await self.get(key) == data:
                    return True
            except KeyNotFoundError:
                return False
        return False

    def _complain(self, failing_s: float, exc: Exception) -> None:
        """Log that a request has failed for so long; once for all requests that fail together."""
        now = anyio.current_time()
        if failing_s >= _COMPLAIN_AFTER_S and now >= self._complained_at + _COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning("%s has failed for %.0f s and is tried again: %s", self.uri, failing_s, exc)


class _Attempts:
    """The failed attempts at one request."""

    def __init__(self, store: ResilientStore) -> None:
        self._store = store
        self._failing_since = math.inf
        self.num_failed = 0

    async def pause(self, exc: StoreUnavailableError) -> None:
        """Sleep until the next attempt is due. Raises `exc` when there is none."""
        self.num_failed += 1
        self._failing_since = min(self._failing_since, anyio.current_time())
        failing_s = anyio.current_time() - self._failing_since
        if failing_s >= self._store._patience_s:
            raise exc
        self._store._complain(failing_s, exc)
        longest_s = min(_LONGEST_S, _FIRST_S * _GROWTH ** min(self.num_failed - 1, 30))
        await anyio.sleep(longest_s * self._store._jitter.uniform(0.5, 1.0))
