"""What a driver knows of the processes of its run: which there are, how they ended, how long they ran."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from aiodiloco.executors.group import Group
from aiodiloco.lease import Report
from aiodiloco.records import ReplicaResult, ReplicaStatus
from aiodiloco.run.decide import Attempt, final_rows
from aiodiloco.run.record import RunAttempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiodiloco.executors.calls import Calls
    from aiodiloco.records import ReplicaHandle
    from aiodiloco.run.journal import Slot

__all__ = ["Roster"]


@dataclasses.dataclass
class _Entry:
    """What is known of one process.

    Attributes:
        position: In the group that watches it; None while there is no handle.
        row: How it ended, where the group cannot know.
        since_s: On the run's clock, since when it runs.
        ended_s: When it ended, on the same clock.
        is_told: Its end was told as news.
    """

    position: int | None = None
    row: ReplicaResult | None = None
    since_s: float = 0.0
    ended_s: float | None = None
    is_unknown: bool = False
    is_told: bool = False


class Roster:
    """The processes of a run; no I/O but the watching of replicas.

    Args:
        calls: To the backend.
        n_replicas: Number of ranks.
        gpus: What each replica has.
        before: What was reported by the drivers before this one; the run's clock goes on from there.
        on_change: Called when a process has ended.
    """

    def __init__(
        self, calls: Calls, n_replicas: int, gpus: int, before: Report, on_change: Callable[[], object]
    ) -> None:
        self.group = Group(calls, [], on_change=on_change)
        self._n_replicas = n_replicas
        self._gpus = gpus
        self._before = before
        self._began = time.monotonic() - before.elapsed_s
        self._entries: dict[Slot, _Entry] = {}

    @property
    def elapsed_s(self) -> float:
        """The run's clock: seconds since its launch."""
        return time.monotonic() - self._began

    @property
    def spent_gpu_s(self) -> float:
        """GPU seconds of all processes, as far as drivers saw them run."""
        now_s = self.elapsed_s
        return self._before.spent_gpu_s + self._gpus * sum(
            _seconds(entry, now_s) for entry in self._entries.values() if entry.position is not None
        )

    @property
    def num_running(self) -> int:
        """How many replicas run, as far as is known."""
        self._note_ends()
        return sum(entry.position is not None and entry.ended_s is None for entry in self._entries.values())

    def report(self) -> Report:
        """Return what the next driver must know."""
        latest = {slot.rank: slot.incarnation for slot in sorted(self._entries) if slot.incarnation}
        return Report(round(self.elapsed_s, 3), round(self.spent_gpu_s, 3), latest)

    def announce(self, slots: Iterable[Slot]) -> None:
        """Note that these are about to be started."""
        for slot in slots:
            self._entries.setdefault(slot, _Entry(ended_s=None))

    def started(self, slot: Slot, handle: ReplicaHandle) -> None:
        """Note that this process was started, and watch it."""
        entry = self._entries.setdefault(slot, _Entry())
        if entry.position is None:
            entry.row, entry.ended_s, entry.is_unknown = None, None, False
            entry.since_s = self.elapsed_s
            entry.position = self.group.add(handle)

    def not_started(self, slot: Slot, status: ReplicaStatus, error: str, *, is_unknown: bool = False) -> None:
        """Note that this process was not started, or that nobody knows; unless it was after all."""
        entry = self._entries.setdefault(slot, _Entry())
        if entry.position is None and entry.row is None:
            entry.row = ReplicaResult(slot.rank, status, error=error)
            entry.ended_s, entry.is_unknown = self.elapsed_s, is_unknown

    def cancel(self, slots: Iterable[Slot], reason: str) -> None:
        """Ask for the end of these, without waiting; those that have no handle yet are not touched."""
        positions = [entry.position for slot in slots if (entry := self._entries[slot]).position is not None]
        self.group.cancel([position for position in positions if position is not None], reason)

    def give_up(self) -> None:
        """Stop waiting for ends that the backend does not confirm; their rows say so."""
        rows = self.group.results("its cancellation was asked for, and the backend did not confirm its end")
        for entry in self._entries.values():
            if entry.position is not None and entry.ended_s is None:
                entry.row, entry.ended_s = rows[entry.position], self.elapsed_s

    def attempts(self) -> list[Attempt]:
        """Return all processes as they are now."""
        self._note_ends()
        return [
            Attempt(slot, self._row(entry), entry.ended_s or 0.0, entry.is_unknown)
            for slot, entry in sorted(self._entries.items())
        ]

    def new_ends(self) -> list[tuple[Slot, ReplicaResult]]:
        """Return the processes that were started and have ended since this was asked last, and how."""
        ended = [(slot, entry) for slot, entry in sorted(self._entries.items()) if not entry.is_told]
        rows = [(slot, entry, self._row(entry)) for slot, entry in ended if entry.position is not None]
        for _, entry, row in rows:
            entry.is_told = row is not None
        return [(slot, row) for slot, _, row in rows if row is not None]

    def handles(self) -> list[ReplicaHandle]:
        """Return the handle of each rank's latest process, in rank order."""
        latest = {
            slot.rank: entry.position for slot, entry in sorted(self._entries.items()) if entry.position is not None
        }
        return [self.group.handles[position] for _, position in sorted(latest.items()) if position is not None]

    def rows(self) -> tuple[ReplicaResult, ...]:
        """Return one row per rank. Only when all have ended."""
        return final_rows(self.attempts(), self._n_replicas)

    def history(self) -> tuple[RunAttempt, ...]:
        """Return all processes and how they ended, by rank and incarnation. Only when all have ended."""
        now_s = self.elapsed_s
        self._note_ends()
        ends = [(slot, entry, self._row(entry)) for slot, entry in sorted(self._entries.items())]
        return tuple(
            RunAttempt(slot.incarnation, row, round(_seconds(entry, now_s) if entry.position is not None else 0.0, 3))
            for slot, entry, row in ends
            if row is not None
        )

    def _row(self, entry: _Entry) -> ReplicaResult | None:
        if entry.row is not None:
            return entry.row
        return None if entry.position is None else self.group.rows[entry.position]

    def _note_ends(self) -> None:
        for entry in self._entries.values():
            if entry.ended_s is None and self._row(entry) is not None:
                entry.ended_s = self.elapsed_s


def _seconds(entry: _Entry, now_s: float) -> float:
    return (now_s if entry.ended_s is None else entry.ended_s) - entry.since_s
