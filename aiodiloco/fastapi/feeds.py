"""`Feeds`: the feeds that are being read now, one for each thing that somebody streams."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.fastapi.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from anyio.abc import TaskGroup

    from aiodiloco.fastapi.feed import Source

__all__ = ["Feeds"]

_LINGER_S = 10.0  # after its last stream: a page that is loaded again, or a connection that broke, finds it warm


@dataclasses.dataclass
class _Entry:
    feed: Feed
    scope: anyio.CancelScope
    num_left: int = 0


class Feeds:
    """Starts a feed with its first stream, and ends it some seconds after the last has gone.

    Args:
        tasks: Where feeds run.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._entries: dict[Hashable, _Entry] = {}
        self._is_closed = False

    @property
    def num_streams(self) -> int:
        """How many streams are open, of all feeds."""
        return sum(entry.feed.num_streams for entry in self._entries.values())

    @contextlib.contextmanager
    def subscribed(self, key: Hashable, make: Callable[[], Source]) -> Iterator[Feed]:
        """Have one stream of the feed under this key, which is made if there is none."""
        entry = self._entries.get(key) or self._start(key, make())
        entry.feed.num_streams += 1
        try:
            yield entry.feed
        finally:
            entry.feed.num_streams -= 1
            entry.num_left += 1
            if not self._is_closed:
                self._tasks.start_soon(self._end_unless_used, key, entry, entry.num_left)

    def find(self, key: Hashable) -> Feed | None:
        """Return the feed under this key, if there is one."""
        entry = self._entries.get(key)
        return None if entry is None else entry.feed

    def close(self) -> None:
        """End all streams, and all reading, now."""
        self._is_closed = True
        for entry in self._entries.values():
            entry.feed.close()
            entry.scope.cancel()

    def _start(self, key: Hashable, source: Source) -> _Entry:
        entry = self._entries[key] = _Entry(Feed(source), anyio.CancelScope())
        if self._is_closed:
            entry.feed.close()
        else:
            self._tasks.start_soon(_run, entry)
        return entry

    async def _end_unless_used(self, key: Hashable, entry: _Entry, num_left: int) -> None:
        await anyio.sleep(_LINGER_S)
        if entry.feed.num_streams == 0 and entry.num_left == num_left and self._entries.get(key) is entry:
            entry.scope.cancel()
            del self._entries[key]


async def _run(entry: _Entry) -> None:
    with entry.scope:
        await entry.feed.run()
