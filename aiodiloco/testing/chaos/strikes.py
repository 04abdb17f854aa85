"""Processes that are killed or stopped at one exact moment: they strike themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Moment", "Strike", "Strikes", "Trigger"]

Moment: TypeAlias = Literal["before", "during", "after"]


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A moment in the life of a process.

    Attributes:
        moment: Of what it does. `during` knows only writes to a `FileStore`: the object is written, under another name,
            and not published yet.
        operation: `get`, `put`, `put_if_absent` or `delete` of a store; or a word of the process's own.
        key: Regular expression for the whole key.
        count: At the first time, the second, …, in one process.
        given: File that must exist in the trial's directory; until then it does not count.
    """

    moment: Moment
    operation: str
    key: str
    count: int = 1
    given: str | None = None

    def matches(self, moment: Moment, operation: str, key: str) -> bool:
        """Whether this is about such a moment."""
        return (self.moment, self.operation) == (moment, operation) and re.fullmatch(self.key, key) is not None


@dataclasses.dataclass(frozen=True)
class Strike:
    """A signal that falls at a trigger, once, whichever of all processes that share `mark` comes there first.

    Attributes:
        trigger: When.
        signal: What: SIGKILL or SIGSTOP.
        mark: File that says that it fell, with the pid of the process it fell on.
    """

    trigger: Trigger
    signal: signal.Signals
    mark: Path

    def fall(self) -> None:
        """Be struck, if nobody was. Of a SIGSTOP this returns when somebody sends a SIGCONT."""
        draft = self.mark.with_name(f"{self.mark.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(str(os.getpid()))
        try:
            os.link(draft, self.mark)
        except FileExistsError:
            return
        finally:
            draft.unlink()
        # To this very thread: it does not execute another instruction.
        signal.pthread_kill(threading.get_ident(), self.signal)


class Strikes:
    """All strikes that may fall on this process. `at` is called wherever one might."""

    def __init__(self, directory: Path, strikes: Sequence[Strike]) -> None:
        self._directory = directory
        self._strikes = strikes
        self._seen: Counter[Strike] = Counter()

    def at(self, moment: Moment, operation: str, key: str) -> None:
        """Be struck, if this is the moment."""
        for strike in self._due(moment, operation, key):
            strike.fall()

    @contextlib.contextmanager
    def during(self, operation: str, key: str) -> Iterator[None]:
        """Be struck when what is written inside is about to be published, if this is the moment."""
        strikes = self._due("during", operation, key)
        if not strikes:
            yield
            return
        _watch_publications()
        token = _publishing.set(strikes)
        try:
            yield
        finally:
            _publishing.reset(token)

    def _due(self, moment: Moment, operation: str, key: str) -> list[Strike]:
        due = []
        for strike in self._strikes:
            given = strike.trigger.given
            if not strike.trigger.matches(moment, operation, key):
                continue
            if given is not None and not (self._directory / given).exists():
                continue
            self._seen[strike] += 1
            if self._seen[strike] == strike.trigger.count:
                due.append(strike)
        return due


# Worker threads run in a copy of their caller's context, so this knows whose write it is that publishes something.
_publishing: ContextVar[Sequence[Strike]] = ContextVar("publishing", default=())
_watched: list[int] = []


def _watch_publications() -> None:
    if os.getpid() not in _watched:  # an audit hook stays for good, one is enough, and a fork inherits it
        _watched.append(os.getpid())
        sys.addaudithook(_note_publication)


def _note_publication(event: str, _: tuple[object, ...]) -> None:
    if event in ("os.rename", "os.link") and (strikes := _publishing.get()):
        _publishing.set(())  # a strike makes a link of its own
        for strike in strikes:
            strike.fall()
