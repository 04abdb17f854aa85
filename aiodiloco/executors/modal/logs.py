"""The lines a replica wrote, as Modal keeps them."""

from __future__ import annotations

import datetime
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.lines import Lines
from aiodiloco.executors.modal.outcome import is_transient
from aiodiloco.executors.modal.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    import modal
    from modal.types import LogEntry

__all__ = ["Seen", "read_logs"]

_ANSWER_S = 30.0
_TICK_S = 0.5
_STRAGGLERS_S = 0.5  # output travels apart from results: the last lines may come after the end is known
_OVERLAP = datetime.timedelta(seconds=5)  # lines of several sources are not kept strictly in the order of their times
_LONGEST_LIFE = datetime.timedelta(days=2)
_SKEW = datetime.timedelta(minutes=1)  # between this machine's clock and those of the containers
_MOST_ENTRIES = 20_000  # what the client answers at most
_SOURCES = ("stdout", "stderr")


async def read_logs(
    call: modal.FunctionCall[Any], *, n_lines: int, follow: bool, wait: Callable[[], Awaitable[object]]
) -> AsyncIterator[str]:
    """Iterate over the last `n_lines` lines of a call, and with `follow` over new ones until `wait()` returned.

    Following asks for what is new since the last look, so a connection that is lost, or a control plane that is away
    for a while, costs no line and repeats none.
    """
    history = await _tail(call, n_lines) if n_lines or follow else []
    writer = _Writer()
    last = deque((line for entry in history for line in writer.feed(entry)), maxlen=n_lines)
    if not follow:
        last.extend(writer.rest())
    for line in last:
        yield line
    if not follow:
        return
    seen = Seen(history)
    has_ended = False
    while not has_ended:
        with anyio.move_on_after(_TICK_S):
            await wait()
            has_ended = True
        if has_ended:
            await anyio.sleep(_STRAGGLERS_S)
        for entry in seen.new(await _bounded(partial(_fetch, call, seen.since))):
            for line in writer.feed(entry):
                yield line
    for line in writer.rest():
        yield line


class Seen:
    """Tells new log entries from those seen before, by their times and texts.

    Attributes:
        since: From when on to ask for entries.
    """

    def __init__(self, entries: Iterable[LogEntry]) -> None:
        self.since = datetime.datetime.now(datetime.UTC) - _LONGEST_LIFE
        self._latest = self.since
        self._counts: Counter[tuple[datetime.datetime, str, str]] = Counter()
        self.new(entries)

    def new(self, entries: Iterable[LogEntry]) -> list[LogEntry]:
        """Return those of `entries` that were not there when last asked; `entries` are all from `since` on."""
        counts: Counter[tuple[datetime.datetime, str, str]] = Counter()
        new = []
        for entry in entries:
            key = (entry.timestamp, entry.source, entry.message)
            counts[key] += 1
            if counts[key] > self._counts[key]:
                new.append(entry)
            self._latest = max(self._latest, entry.timestamp)
        self._counts |= counts
        self.since = max(self.since, self._latest - _OVERLAP)
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] >= self.since})
        return new


class _Writer:
    """Cuts the entries of both outputs into lines, each by itself."""

    def __init__(self) -> None:
        self._lines = {source: Lines() for source in _SOURCES}

    def feed(self, entry: LogEntry) -> list[str]:
        """Return the lines that `entry` completes. What Modal itself says of the container is left out."""
        return self._lines[entry.source].feed(entry.message) if entry.source in self._lines else []

    def rest(self) -> list[str]:
        """Return what was written without a line end."""
        return [line for lines in self._lines.values() for line in lines.rest()]


async def _tail(call: modal.FunctionCall[Any], n_lines: int) -> list[LogEntry]:
    """Return the last entries, at least `n_lines` lines of them if there are so many."""
    num = min(2 * n_lines + 100, _MOST_ENTRIES)
    while True:
        entries = await _bounded(partial(_last, call, num))
        num_lines = sum(entry.message.count("\n") for entry in entries if entry.source in _SOURCES)
        if num_lines > n_lines or len(entries) < num or num == _MOST_ENTRIES:
            return entries
        num = min(8 * num, _MOST_ENTRIES)


async def _last(call: modal.FunctionCall[Any], num: int) -> list[LogEntry]:
    return [entry async for entry in call.logs.tail.aio(num)]


async def _fetch(call: modal.FunctionCall[Any], since: datetime.datetime) -> list[LogEntry]:
    until = datetime.datetime.now(datetime.UTC) + _SKEW
    return [entry async for entry in call.logs.fetch.aio(since=since, until=until)]


async def _bounded(ask: Callable[[], Awaitable[list[LogEntry]]]) -> list[LogEntry]:
    pauses = Pauses()
    with anyio.move_on_after(_ANSWER_S):
        while True:
            try:
                return await ask()
            except Exception as exc:
                if not is_transient(exc):
                    raise explain(exc, "reading the log") from exc
            await pauses.wait()
    raise ExecutorError(f"Modal did not answer within {_ANSWER_S:g} s when asked for the log")
