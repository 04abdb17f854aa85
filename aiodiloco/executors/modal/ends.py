"""The end of a replica, for all tasks that wait for it: one asks, the others rely on it and are told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from aiodiloco.executors.modal.tickets import Ticket, call_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiodiloco.records import ReplicaResult

__all__ = ["Ends", "Stage", "Waiter"]


class Stage(enum.Enum):
    """How far a task is that asks for a replica's end."""

    queued_poll = "it waits for its turn"
    sent_poll = "its request is under way"
    queued_confirmation = "it waits for its turn, which comes before those of polls"
    sent_confirmation = "its request is under way, for a replica that was told to end"

    __hash__ = object.__hash__  # members are equal if they are the same; by their names takes longer


_SENT = (Stage.sent_poll, Stage.sent_confirmation)


@dataclasses.dataclass(eq=False)
class _Call:
    """What is known of one call.

    Attributes:
        waiters: Who waits for its end.
        asking: How many of them ask, by stage.
        sent_at: When a request for it was last sent (`time.monotonic()`).
        looked_at: When it was last asked without being told of an end.
    """

    waiters: set[Waiter] = dataclasses.field(default_factory=set)
    asking: Counter[Stage] = dataclasses.field(default_factory=Counter)
    sent_at: float = float("-inf")
    looked_at: float = float("-inf")


@dataclasses.dataclass(eq=False)
class Waiter:
    """One task that waits, in whatever event loop.

    Attributes:
        call: What all of them know.
        row: How the replica ended, once that is known.
    """

    call: _Call
    _lock: threading.Lock
    _loop: asyncio.AbstractEventLoop
    row: ReplicaResult | None = None
    _on_news: Callable[[], object] | None = None
    _until: Callable[[], float] | None = None
    _latest: float = 0.0
    _is_notified: bool = False

    @property
    def is_asked_for(self) -> bool:
        """Whether some task has a request under way."""
        return any(self.call.asking[stage] for stage in _SENT)

    async def rely_on_others(self, until: Callable[[], float]) -> None:
        """Return at `until()` (`time.monotonic()`), or when the replica has ended.

        `until` is asked again whenever a task that asks has come further, or there is other news.
        """
        ticket = Ticket()
        self._until = until  # first, so that no news gets lost
        self._latest = until()
        timer = None
        if self._latest < float("inf"):
            timer = self._loop.call_later(self._latest - time.monotonic(), ticket.drop)
        try:
            with self.calling(ticket.drop):
                await ticket.wait()
        finally:
            self._until = None
            if timer is not None:
                timer.cancel()

    @contextlib.contextmanager
    def calling(self, on_news: Callable[[], object]) -> Iterator[None]:
        """Call `on_news` in this task's event loop when the replica has ended, or was told to end."""
        self._on_news = on_news
        try:
            yield
        finally:
            self._on_news = None

    @contextlib.contextmanager
    def asking(self, stage: Stage) -> Iterator[None]:
        """Let the others rely on this task as long as the block lasts."""
        self._change(stage, +1)
        try:
            yield
        finally:
            self._change(stage, -1)

    def _change(self, stage: Stage, change: int) -> None:
        with self._lock:
            self.call.asking[stage] += change
            others = [waiter for waiter in self.call.waiters if waiter is not self and waiter._until is not None]
        for other in others:
            other.notify()

    def notify(self) -> None:
        """Tell this task that there is news. From any thread."""
        if self._is_notified:
            return
        self._is_notified = True
        with contextlib.suppress(RuntimeError):  # its event loop is closed, so nobody waits there
            call_in(self._loop, self._interrupt)

    def _interrupt(self) -> None:
        self._is_notified = False
        if self._on_news is not None and not self._still_relies():
            self._on_news()

    def _still_relies(self) -> bool:
        """Return whether the news changes nothing: who asks comes from one stage to the next without a pause."""
        return self.row is None and self._until is not None and self._until() == self._latest


class Ends:
    """Knows who waits for which call, and keeps nothing beyond that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, _Call] = {}

    @property
    def num_calls(self) -> int:
        """How many calls are waited for."""
        return len(self._calls)

    @contextlib.contextmanager
    def waiting(self, call_id: str) -> Iterator[Waiter]:
        """Be told of the call's end as long as the block lasts."""
        with self._lock:
            call = self._calls.setdefault(call_id, _Call())
            waiter = Waiter(call, self._lock, asyncio.get_running_loop())
            call.waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                call.waiters.discard(waiter)
                if not call.waiters:
                    del self._calls[call_id]

    def tell(self, call_id: str, row: ReplicaResult | None) -> None:
        """Tell all who wait for this call how it ended; None: that it was told to end."""
        with self._lock:
            waiters = list(self._calls[call_id].waiters) if call_id in self._calls else []
        for waiter in waiters:
            waiter.row = row or waiter.row
            waiter.notify()
