"""The end of a replica, for all tasks that wait for it: one asks, the others rely on it and are told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import threading
from collections import Counter
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodiloco.records import ReplicaResult

__all__ = ["Ends", "Stage", "Waiter"]


class Stage(enum.Enum):
    """How far a task is that asks for a replica's end."""

    queued_poll = "it waits for its turn"
    sent_poll = "its request is under way"
    queued_confirmation = "it waits for its turn, which comes before those of polls"
    sent_confirmation = "its request is under way, for a replica that was told to end"


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
    _scope: anyio.CancelScope | None = None
    _relies: bool = False

    @property
    def is_asked_for(self) -> bool:
        """Whether some task has a request under way."""
        return any(self.call.asking[stage] for stage in (Stage.sent_poll, Stage.sent_confirmation))

    async def rely_on_others(self, within_s: float) -> None:
        """Return when another task that asks has come further, or there is other news, or the time is over."""
        self._relies = True
        with self.until_news(within_s):
            await anyio.sleep_forever()
        self._relies = False

    @contextlib.contextmanager
    def until_news(self, within_s: float = float("inf")) -> Iterator[None]:
        """Leave the block when the replica has ended, or was told to end.

        Not for requests: cancelled just when it has its answer, one makes asyncio complain that nobody took it.
        """
        with anyio.move_on_after(within_s) as self._scope:
            yield
        self._scope = None

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
            others = [waiter for waiter in self.call.waiters if waiter is not self and waiter._relies]
        for other in others:
            other.notify()

    def notify(self) -> None:
        """Tell this task that there is news. From any thread."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed, so nobody waits there
            self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


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
