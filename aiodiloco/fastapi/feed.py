"""`Feed`: one reader of a run's events, or of its logs, for any number of streams."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel

from aiodiloco.errors import AiodilocoError
from aiodiloco.events import Cursor
from aiodiloco.fastapi.ring import Place, Ring

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from aiodiloco.events import Event
    from aiodiloco.records import JSON

__all__ = ["Feed", "Source"]

_log = logging.getLogger(__name__)

_PER_CHUNK = 256  # events, so that one stream does not keep the event loop from the others
_KEEPALIVE_S = 15.0  # below what proxies wait for
_AGAIN_S = 1.0


class Source(Protocol):
    """What a feed reads."""

    async def follow(self, emit: Callable[[Sequence[Event]], None], *, after: Cursor) -> JSON:
        """Call `emit` with all events after the cursor, those of one writer in order; return a last word at the end."""
        ...

    async def read_some(self, after: Cursor) -> Sequence[Event]:
        """Return the first events after the cursor, a bounded number; none where there are none."""
        ...


class Feed:
    """Reads while it is followed, keeps the latest in memory, and lets each stream read at its own pace.

    A stream that falls behind what is kept, or begins so, reads from the source until it has caught up; one at a time,
    so that a hundred late streams are one more reader, not a hundred.

    Args:
        source: What to read.
        ring: Keeps the latest.

    Attributes:
        num_streams: How many there are now.
    """

    def __init__(self, source: Source, ring: Ring | None = None) -> None:
        self.num_streams = 0
        self._source = source
        self._ring = Ring() if ring is None else ring
        self._changed = anyio.Event()
        self._catching_up = anyio.Lock()
        self._last_word: JSON = None
        self._is_over = False
        self._is_closed = False

    def has_told_all(self, cursor: Cursor) -> bool:
        """Whether the source has ended and nothing in it comes after the cursor."""
        seen = cursor.last_seq
        return self._is_over and all(seen.get(writer, -1) >= seq for writer, seq in self._ring.read.items())

    async def run(self) -> None:
        """Read the source until its end. What fails is tried again, from where it stood."""
        while not self._is_over:
            try:
                self._last_word = await self._source.follow(self._add, after=Cursor(self._ring.read))
                self._is_over = True
            except AiodilocoError as exc:
                _log.warning("cannot follow a run, and try again: %s", exc)
                await anyio.sleep(_AGAIN_S)
        self._wake()

    def close(self) -> None:
        """End all streams, now; their readers come back with the id of what they read last."""
        self._is_closed = True
        self._wake()

    async def stream(self, cursor: Cursor, kinds: frozenset[str] | None = None) -> AsyncGenerator[bytes, None]:
        """Iterate over server-sent events after the cursor, in chunks of some: first the past, then what comes.

        The last one is of type `end`. The stream also ends, without it, when the feed is closed.
        """
        place = Place(self._ring, cursor, kinds)
        yield b"retry: 1000\n\n"
        while not self._is_closed:
            changed = self._changed
            if place.is_behind and not place.rewind():
                chunk = await self._catch_up(place)
            else:
                num, frames = place.take(_PER_CHUNK)
                if num == 0:
                    if self._is_over:
                        yield b"event: end\ndata: " + json.dumps(self._last_word).encode() + b"\n\n"
                        return
                    yield await _wait(changed)
                    continue
                chunk = b"".join(frames)
            await anyio.lowlevel.checkpoint()
            yield chunk

    async def _catch_up(self, place: Place) -> bytes:
        async with self._catching_up:
            events = await self._source.read_some(Cursor(place.seen))
        if not events:
            place.skip()
        return b"".join(one for event in events if (one := place.note(event)) is not None)

    def _add(self, events: Sequence[Event]) -> None:
        self._ring.extend(events)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


async def _wait(changed: anyio.Event) -> bytes:
    """Wait for news; return what to send meanwhile: nothing, or a comment that keeps the connection open."""
    with anyio.move_on_after(_KEEPALIVE_S):
        await changed.wait()
        return b""
    return b": nothing new\n\n"
