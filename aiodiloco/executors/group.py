"""A group of replicas under watch: what is known of each, and the backend calls under way."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.calls import Bell, Calls, Job
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Group", "end_replica", "end_replicas"]


class Group:
    """Watches replicas from the moment it is made; all methods are for one event loop.

    Attributes:
        handles: The replicas, in the caller's order.
        rows: One entry per handle: how it ended, or None while it has not.
        ended: Positions of those that ended, in the order in which they did.
        lost: Position -> why the backend could not say how the replica ended; its row says failed.

    Args:
        calls: To the backend.
        handles: The replicas to begin with.
        on_change: Called in this event loop after each end.
    """

    def __init__(
        self, calls: Calls, handles: Sequence[ReplicaHandle], *, on_change: Callable[[], object] | None = None
    ) -> None:
        self.handles: list[ReplicaHandle] = []
        self.rows: list[ReplicaResult | None] = []
        self.ended: list[int] = []
        self._on_change = on_change
        self._calls = calls
        self.lost: dict[int, Exception] = {}
        self._open: dict[int, None] = {}  # the positions of those that have not ended, in order
        self._bell = Bell()
        self._reasons: dict[int, str] = {}
        self._cancels: dict[int, Job[None]] = {}
        self._last_ask = 0.0
        self._closed = False
        self._waits: list[Job[ReplicaResult]] = []
        for handle in handles:
            self.add(handle)

    def add(self, handle: ReplicaHandle) -> int:
        """Watch one more replica, and return its position."""
        index = len(self.handles)
        self.handles.append(handle)
        self.rows.append(None)
        self._open[index] = None
        wait = self._calls.backend.wait(handle)
        self._waits.append(self._calls.start(wait, on_end=partial(self._note_end, index)))
        return index

    def unfinished(self) -> list[int]:
        """Return the positions of the replicas that have not ended, in order."""
        return list(self._open)

    def cancel(self, positions: Iterable[int], reason: str) -> None:
        """Ask the backend to cancel these replicas, without waiting; each is asked once."""
        for index in positions:
            if self.rows[index] is None and index not in self._cancels:
                self._reasons[index] = reason
                self._ask(index)

    def give_up_at(self) -> float:
        """Return when to stop waiting for confirmations (`time.monotonic()`); infinity if some were not cancelled."""
        if self._open.keys() <= self._cancels.keys():
            return self._last_ask + self._calls.backend.cancel_bound_s
        return float("inf")

    async def wait_for_change(self, deadline: float) -> bool:
        """Return True when another replica has ended, or False once `time.monotonic()` has reached `deadline`."""
        return await self._bell.wait_until(deadline)

    async def wait_for_all(self, deadline: float) -> None:
        """Return when every replica has ended, or at `deadline`."""
        while self._open and await self.wait_for_change(deadline):
            pass

    def results(self, why: str) -> list[ReplicaResult]:
        """Return a row for every replica; `why` says why the watch ended before those still running did."""
        return [row or self._unfinished_row(index, why) for index, row in enumerate(self.rows)]

    def close(self) -> None:
        """Stop watching. Cancellations that were asked for go on."""
        self._closed = True
        for job in self._waits:
            job.abandon()

    def _note_end(self, index: int) -> None:
        if self._closed:
            return
        wait = self._waits[index]
        lost = wait.error()
        self.rows[index] = self._lost_row(index, lost) if lost is not None else self._with_reason(index, wait.value())
        del self._open[index]
        self.ended.append(index)
        self._bell.ring()
        if self._on_change is not None:
            self._on_change()

    def _with_reason(self, index: int, row: ReplicaResult) -> ReplicaResult:
        reason = self._reasons.get(index)
        if row.status is not ReplicaStatus.cancelled or reason is None:
            return row
        detail = (row.error or "").removeprefix("cancelled")
        return dataclasses.replace(row, error=f"cancelled: {reason}{detail}")

    def _lost_row(self, index: int, lost: Exception) -> ReplicaResult:
        """A replica that cannot be watched counts as failed; it is also cancelled, for it may still run."""
        self.lost[index] = lost
        if index not in self._cancels:
            self._ask(index)
        handle = self.handles[index]
        error = f"lost sight of it, and asked for its cancellation: {type(lost).__qualname__}: {lost}"
        return ReplicaResult(handle.rank, ReplicaStatus.failed, error=error, call_id=handle.call_id)

    def _unfinished_row(self, index: int, why: str) -> ReplicaResult:
        handle = self.handles[index]
        error = f"still running: {why}"
        if index in self._cancels:
            job = self._cancels[index]
            failure = job.error() if job.has_ended else None
            error += f"; its cancellation was asked for but not confirmed (call id {handle.call_id})"
            error += f": {type(failure).__qualname__}: {failure}" if failure is not None else ""
        return ReplicaResult(handle.rank, ReplicaStatus.running, error=error, call_id=handle.call_id)

    def _ask(self, index: int) -> None:
        self._last_ask = time.monotonic()
        self._cancels[index] = self._calls.cancel(self.handles[index])


async def end_replicas(
    calls: Calls, handles: Sequence[ReplicaHandle], *, reason: str, within_s: float
) -> list[ReplicaResult]:
    """Cancel the replicas and return their rows, after at most `within_s` seconds; not interrupted by anyio scopes."""
    group = Group(calls, handles)
    group.cancel(range(len(group.handles)), reason)
    try:
        with anyio.CancelScope(shield=True):
            await group.wait_for_all(time.monotonic() + within_s)
        return group.results(reason)
    finally:
        group.close()


async def end_replica(calls: Calls, handle: ReplicaHandle, *, within_s: float) -> None:
    """Cancel one replica and return once the backend confirmed its end.

    Raises:
        ExecutorError: not confirmed within `within_s` seconds. The backend's own error where it raised one.
    """
    group = Group(calls, [handle])
    group.cancel([0], "cancel() was called")
    try:
        await group.wait_for_all(time.monotonic() + within_s)
    finally:
        group.close()
    if group.lost:
        raise group.lost[0]
    if group.unfinished():
        [row] = group.results(f"{within_s:g} s after cancel() was called")
        raise ExecutorError(f"rank {handle.rank} is {row.error}")
