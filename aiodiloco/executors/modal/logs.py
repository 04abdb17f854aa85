"""The lines a replica wrote, as Modal keeps them."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.calls import Bell
from aiodiloco.executors.modal import entries
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.feeds import TICK_S, Feeds, Subscription
from aiodiloco.executors.modal.lines import Lines
from aiodiloco.executors.modal.requests import NoAnswerError
from aiodiloco.executors.modal.seen import Seen
from aiodiloco.executors.modal.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    import modal
    from modal.types import LogEntry

    from aiodiloco.executors.calls import Calls, Job

__all__ = ["Logs"]

_STRAGGLERS_S = 0.5  # output travels apart from results: the last lines may come after the end is known
_DOUBT_S = 5.0  # after which to see whether a call writes what its function's log does not show
_LONGEST_DOUBT_S = 60.0
_MOST_ENTRIES = 20_000  # what the client answers at most
_MOST_AT_ONCE = 16
_SOURCES = ("stdout", "stderr")


class Logs:
    """Reads the logs of calls, for any number of tasks in any event loop.

    A follower asks for the history of its call, and for its log once more when it has ended. In between one reader
    asks for the log of the function, for all who follow calls of it in the same event loop; it keeps the call of each
    line. Where that does not show what a call writes, its followers ask for themselves. What is asked for always
    overlaps with what is known, and known lines are left out, so a connection that is lost, or a control plane that is
    away for a while, costs no line and repeats none.
    """

    def __init__(self, calls: Calls, client: modal.Client | None) -> None:
        self._calls = calls
        self._feeds = Feeds(calls, client)
        self._turns = Slots(_MOST_AT_ONCE)

    async def lines(self, call: modal.FunctionCall[Any], n_lines: int) -> AsyncIterator[str]:
        """Iterate over the last `n_lines` lines of a call."""
        writer = _Writer()
        history, _ = await self._tail(call, n_lines) if n_lines else ([], True)
        for line in deque((*writer.feed(history), *writer.rest()), maxlen=n_lines):
            yield line

    async def follow(
        self,
        call: modal.FunctionCall[Any],
        n_lines: int,
        *,
        call_id: str,
        function_id: str | None,
        wait: Callable[[], Coroutine[Any, Any, object]],
    ) -> AsyncIterator[str]:
        """Iterate over the last `n_lines` lines of a call, and over new ones until `wait()` has returned.

        Args:
            call: Whose log.
            n_lines: How many of the lines that are there already.
            call_id: Its id.
            function_id: The call's function, for the reader that all followers share; None: ask for this call alone.
            wait: Returns when the call has ended.
        """
        bell = Bell()
        end = self._calls.start(wait(), on_end=bell.ring)
        try:
            with self._feeds.subscribed(function_id, call_id, bell) as feed:
                history, is_whole = await self._tail(call, n_lines)
                writer = _Writer()
                for line in deque(writer.feed(history), maxlen=n_lines):
                    yield line
                follower = _Follower(partial(self._fetch, call), Seen(history, is_whole=is_whole), feed)
                while not follower.is_over:
                    for line in writer.feed(await follower.more(end, bell)):
                        yield line
                for line in writer.rest():
                    yield line
        finally:
            end.abandon()

    async def _tail(self, call: modal.FunctionCall[Any], n_lines: int) -> tuple[list[LogEntry], bool]:
        """Return the last entries, at least `n_lines` lines of them if there are so many, and whether these are all."""
        num = min(2 * n_lines + 100, _MOST_ENTRIES)
        while True:
            found = await self._ask(partial(entries.tail, call, num))
            num_lines = sum(entry.message.count("\n") for entry in found if entry.source in _SOURCES)
            is_whole = len(found) < num
            if num_lines > n_lines or is_whole or num == _MOST_ENTRIES:
                return found, is_whole
            num = min(8 * num, _MOST_ENTRIES)

    async def _fetch(self, call: modal.FunctionCall[Any], seen: Seen) -> list[LogEntry]:
        return await self._ask(partial(entries.fetch, call, seen.since))

    async def _ask(self, ask: Callable[[], Awaitable[list[LogEntry]]]) -> list[LogEntry]:
        async with self._turns.hold():
            try:
                return await entries.patiently(ask)
            except NoAnswerError as exc:
                raise _away() from exc
            except Exception as exc:
                raise explain(exc, "reading the log") from exc


class _Follower:
    """Where a follower is, and whether it has to ask for itself.

    Attributes:
        is_over: The call has ended, and all that it wrote has been returned.
    """

    def __init__(self, fetch: Callable[[Seen], Awaitable[list[LogEntry]]], seen: Seen, feed: Subscription) -> None:
        self.is_over = False
        self._fetch = fetch
        self._seen = seen
        self._feed = feed
        self._looked_at = time.monotonic()
        self._pause_s = _DOUBT_S

    async def more(self, end: Job[object], bell: Bell) -> list[LogEntry]:
        """Return the entries that have come since the last time; waits, but may return none."""
        if end.has_ended:
            return await self._finish(end)
        if time.monotonic() >= self._next_look():
            return await self._look()
        if found := self._from_feed():
            return found
        await bell.wait_until(self._next_look())
        return self._from_feed()

    async def _finish(self, end: Job[object]) -> list[LogEntry]:
        end.value()
        await anyio.sleep(_STRAGGLERS_S)
        found = self._seen.new(await self._fetch(self._seen))
        self.is_over = True
        return found

    async def _look(self) -> list[LogEntry]:
        if self._feed.is_away:
            raise _away()
        self._feed.has_missed = False  # what comes from now on is kept, and compared with what is found now
        found = self._seen.new(await self._fetch(self._seen))
        self._looked_at = time.monotonic()
        self._pause_s = TICK_S if found else min(2 * self._pause_s, _LONGEST_DOUBT_S)
        return found

    def _from_feed(self) -> list[LogEntry]:
        return [entry for batch in self._feed.take() for entry in self._seen.new(batch)]

    def _next_look(self) -> float:
        """Return when to ask for this call alone (`time.monotonic()`)."""
        if self._feed.is_away or self._feed.has_missed:
            return float("-inf")
        if self._feed.is_broken:
            return self._looked_at + TICK_S
        return float("inf") if self._feed.is_confirmed else self._looked_at + self._pause_s


class _Writer:
    """Cuts the entries of both outputs into lines, each by itself."""

    def __init__(self) -> None:
        self._lines = {source: Lines() for source in _SOURCES}

    def feed(self, found: list[LogEntry]) -> list[str]:
        """Return the lines that are complete now. What Modal itself says of the container is left out."""
        return [
            line
            for entry in found
            if entry.source in self._lines
            for line in self._lines[entry.source].feed(entry.message)
        ]

    def rest(self) -> list[str]:
        """Return what was written without a line end."""
        return [line for lines in self._lines.values() for line in lines.rest()]


def _away() -> ExecutorError:
    return ExecutorError(f"Modal did not answer within {entries.ANSWER_S:g} s when asked for the log")
