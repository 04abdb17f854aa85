"""One reader of a function's log for all who follow calls of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
import weakref
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import anyio
import modal

from aiodiloco.executors.modal.entries import fetch, patiently
from aiodiloco.executors.modal.requests import NoAnswerError
from aiodiloco.executors.modal.seen import OVERLAP, SKEW

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from modal.types import LogEntry

    from aiodiloco.executors.calls import Bell, Calls, Job

__all__ = ["TICK_S", "Feeds", "Subscription"]

TICK_S = 0.5
"""Between two looks at a log that is followed."""

_MOST_ENTRIES = 20_000  # that are kept for a follower whose reader is slow


class Subscription:
    """What has come of one call's log, for one follower.

    Attributes:
        is_confirmed: The function's log shows what this call writes.
        has_missed: There was more than is kept for a slow reader: what came since the last look is lost here.
        is_broken: The function's log cannot be read.
        is_away: The control plane could not be reached for so long that the log counts as lost.
    """

    def __init__(self, bell: Bell) -> None:
        self.is_confirmed = self.has_missed = self.is_broken = self.is_away = False
        self._bell = bell
        self._last: list[LogEntry] = []
        self._batches: list[list[LogEntry]] = []

    def put(self, batch: list[LogEntry]) -> None:
        """Take in all entries from some time on; they overlap with those before."""
        if batch == self._last:
            return
        self.is_confirmed, self._last = True, batch
        if sum(map(len, self._batches)) + len(batch) > _MOST_ENTRIES:
            self.has_missed = True
            self._batches.clear()
        else:
            self._batches.append(batch)
        self._bell.ring()

    def take(self) -> list[list[LogEntry]]:
        """Return the batches that came since the last time."""
        batches, self._batches = self._batches, []
        return batches

    def fail(self, exc: Exception) -> None:
        """Tell the follower that nothing more will come."""
        self.is_broken = True
        self.is_away = isinstance(exc, NoAnswerError)
        self._bell.ring()


class Feeds:
    """The functions whose logs are followed, one reader for each and for each event loop.

    A reader starts with its first follower and ends with its last.
    """

    def __init__(self, calls: Calls, client: modal.Client | None) -> None:
        self._calls = calls
        self._client = client
        self._lock = threading.Lock()
        self._feeds: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Feed]]
        self._feeds = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def subscribed(self, function_id: str | None, call_id: str, bell: Bell) -> Iterator[Subscription]:
        """Have what the call writes put into a subscription as long as the block lasts; broken without a function."""
        subscription = Subscription(bell)
        if function_id is None:
            subscription.is_broken = True
            yield subscription
            return
        feed = self._join(function_id, call_id, subscription)
        try:
            yield subscription
        finally:
            self._leave(feed, call_id, subscription)

    def _join(self, function_id: str, call_id: str, subscription: Subscription) -> _Feed:
        with self._lock:
            feeds = self._feeds.setdefault(asyncio.get_running_loop(), {})
            if (feed := feeds.get(function_id)) is None or feed.is_over:
                feed = feeds[function_id] = _Feed(partial(_read, function_id, self._client))
                feed.job = self._calls.start(feed.run())
            feed.followers[call_id].append(subscription)
            return feed

    def _leave(self, feed: _Feed, call_id: str, subscription: Subscription) -> None:
        with self._lock:
            feed.followers[call_id].remove(subscription)
            if not feed.followers[call_id]:
                del feed.followers[call_id]
            if feed.followers:
                return
            feeds = self._feeds.get(asyncio.get_running_loop(), {})
            for function_id in [name for name, each in feeds.items() if each is feed]:
                del feeds[function_id]  # its job holds the event loop, which would never be forgotten
            if not feed.is_over:
                feed.is_over = True
                assert feed.job is not None
                feed.job.abandon()


class _Feed:
    """Reads a log from about now on.

    Attributes:
        followers: Call id -> who gets its entries.
        job: The reader.
        is_over: It does not read any more.
    """

    def __init__(self, read: Callable[[datetime.datetime], Awaitable[list[LogEntry]]]) -> None:
        self.followers: defaultdict[str, list[Subscription]] = defaultdict(list)
        self.job: Job[None] | None = None
        self.is_over = False
        self._read = read
        self._since = datetime.datetime.now(datetime.UTC) - SKEW - OVERLAP

    async def run(self) -> None:
        """Read until nobody follows any more, or the log cannot be read."""
        try:
            while True:
                self._deliver(await patiently(partial(self._read, self._since)))
                await anyio.sleep(TICK_S)
        except Exception as exc:  # noqa: BLE001 - the followers ask for themselves, and raise what they are told
            self._fail(exc)

    def _deliver(self, entries: list[LogEntry]) -> None:
        by_call: defaultdict[str, list[LogEntry]] = defaultdict(list)
        for entry in entries:
            if entry.context_ids:
                by_call[entry.context_ids[0]].append(entry)
        for call_id, batch in by_call.items():
            for follower in self.followers.get(call_id, ()):
                follower.put(batch)
        now = datetime.datetime.now(datetime.UTC)  # one clock that is ahead must not hide the others' lines
        latest = min(now, max((entry.timestamp for entry in entries), default=self._since))
        self._since = max(self._since, latest - OVERLAP)

    def _fail(self, exc: Exception) -> None:
        self.is_over = True
        for followers in self.followers.values():
            for follower in followers:
                follower.fail(exc)


async def _read(function_id: str, client: modal.Client | None, since: datetime.datetime) -> list[LogEntry]:
    return await fetch(modal.Function.from_id(function_id, client=client), since)
