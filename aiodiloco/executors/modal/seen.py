"""Which entries of a log are new."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modal.types import LogEntry

__all__ = ["OVERLAP", "SKEW", "Seen"]

OVERLAP = datetime.timedelta(seconds=5)
"""How far back to ask again: lines of several sources are not kept strictly in the order of their times."""

SKEW = datetime.timedelta(minutes=1)
"""Between this machine's clock and those of the containers."""

_LONGEST_LIFE = datetime.timedelta(days=2)
_TICK = datetime.timedelta(microseconds=1)


class Seen:
    """Tells new log entries from those seen before, by their times and texts.

    Args:
        entries: What has been read already.
        is_whole: Whether that is all there was, and not only the last of it.

    Attributes:
        since: From when on to ask for entries.
    """

    def __init__(self, entries: Iterable[LogEntry], *, is_whole: bool = True) -> None:
        entries = list(entries)
        self.since = datetime.datetime.now(datetime.UTC) - _LONGEST_LIFE
        self._latest = self.since
        self._counts: Counter[tuple[datetime.datetime, str, str]] = Counter()
        self.new(entries)
        if not is_whole and entries:  # what is older was left out on purpose, and is not new
            self.since = max(self.since, min(entry.timestamp for entry in entries) + _TICK)

    def new(self, entries: Iterable[LogEntry]) -> list[LogEntry]:
        """Return those of `entries` that were not there when last asked.

        Args:
            entries: All there are from `since` on, or from a later time on; earlier ones are left out.
        """
        counts: Counter[tuple[datetime.datetime, str, str]] = Counter()
        new = []
        for entry in entries:
            if entry.timestamp < self.since:
                continue
            key = (entry.timestamp, entry.source, entry.message)
            counts[key] += 1
            if counts[key] > self._counts[key]:
                new.append(entry)
            self._latest = max(self._latest, entry.timestamp)
        self._counts |= counts
        self.since = max(self.since, self._latest - OVERLAP)
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] >= self.since})
        return new
