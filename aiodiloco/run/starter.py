"""Starting processes, so that each is journaled before anyone can lose sight of it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import LaunchError, RunError
from aiodiloco.executors.launch import launch
from aiodiloco.records import ReplicaStatus
from aiodiloco.run.journal import Slot, give_up, record_call, record_start

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from typing import Any

    from aiodiloco.events import EventWriter
    from aiodiloco.executors.calls import Calls, Job
    from aiodiloco.lease import LeaseHolder
    from aiodiloco.records import ReplicaHandle
    from aiodiloco.run.record import RunRecord
    from aiodiloco.run.roster import Roster
    from aiodiloco.run.wakeup import Wakeup
    from aiodiloco.store import Store

__all__ = ["Starter"]

_STARTS_AT_ONCE = 32  # as many as a launch has spawns in flight


@dataclasses.dataclass
class _Start:
    job: Job[Any]
    slots: list[Slot]
    is_first: bool
    is_abandoned: bool = False


class Starter:
    """Starts the processes of one driver.

    Args:
        store: An open store, rooted at the run.
        calls: To the backend.
        record: What was asked of the run.
        holder: The lease.
        roster: Told of every process.
        events: The driver's log.
        wakeup: Rung when a start has ended.

    Attributes:
        launch_error: Why the run could not be launched, if it could not.
        has_launched: True once all ranks were started, or found.
    """

    def __init__(
        self,
        *,
        store: Store,
        calls: Calls,
        record: RunRecord,
        holder: LeaseHolder,
        roster: Roster,
        events: EventWriter,
        wakeup: Wakeup,
    ) -> None:
        self.launch_error: LaunchError | None = None
        self.has_launched = False
        self._store = store
        self._calls = calls
        self._record = record
        self._holder = holder
        self._roster = roster
        self._events = events
        self._wakeup = wakeup
        self._starts: list[_Start] = []
        self._has_prepared = False
        self._preparing = anyio.Lock()
        self._at_once = anyio.CapacityLimiter(_STARTS_AT_ONCE)

    @property
    def is_busy(self) -> bool:
        """Whether something is being started."""
        return bool(self._starts)

    def start_all(self) -> None:
        """Begin to start every rank, or none. The backend is prepared."""
        self._has_prepared = True
        slots = [Slot(rank, 0) for rank in range(self._record.n_replicas)]
        self._roster.announce(slots)
        requests = [self._record.request(*slot) for slot in slots]
        note = partial(self._note_spawned, {slot.rank: slot for slot in slots})
        launching = launch(self._calls, requests, on_spawned=note, may_undo=self._may_end)
        self._begin(launching, slots, is_first=True)

    def start(self, slots: Iterable[Slot]) -> None:
        """Begin to start these."""
        for slot in sorted(slots):
            self._roster.announce([slot])
            self._begin(self._start_one(slot), [slot])

    def abandon(self) -> None:
        """Have what is being started ended instead, by whoever starts it. Takes a bounded time; not awaited here."""
        for start in self._starts:
            if not start.is_abandoned:  # once: a second cancellation would reach the cleanup after the first
                start.is_abandoned = True
                start.job.abandon()

    def settle(self, stop: str | None) -> None:
        """Tell the roster how the starts went that have ended; `stop` is why the run is being ended, if it is."""
        ended = [start for start in self._starts if start.job.has_ended]
        self._starts = [start for start in self._starts if not start.job.has_ended]
        for start in ended:
            error = start.job.error()
            self.has_launched |= start.is_first and error is None
            if start.is_first and isinstance(error, LaunchError):
                self.launch_error = error
            why = stop or (str(error) if start.is_first else None)
            status = ReplicaStatus.failed if why is None else ReplicaStatus.pending
            for slot in start.slots:
                self._roster.not_started(slot, status, str(error) if why is None else f"never started: {why}")

    def _begin(self, starting: Coroutine[Any, Any, object], slots: list[Slot], *, is_first: bool = False) -> None:
        self._starts.append(_Start(self._calls.start(starting, on_end=self._wakeup.ring), slots, is_first))

    async def _start_one(self, slot: Slot) -> None:
        if not await record_start(self._store, slot, self._holder.holder):
            await self._adopt(slot)
            return
        self._events.emit("respawned", rank=slot.rank, incarnation=slot.incarnation)
        request = self._record.request(*slot)
        async with self._preparing:
            if not self._has_prepared:
                await self._calls.backend.prepare(request)
                self._has_prepared = True
        note = partial(self._note_spawned, {slot.rank: slot})
        async with self._at_once:
            await launch(self._calls, [request], on_spawned=note, may_undo=self._may_end)

    async def _may_end(self) -> bool:
        """Whether what was started is still this process's to end: unless it was deposed."""
        return await self._holder.ask() is not False

    async def _adopt(self, slot: Slot) -> None:
        """Another driver has begun to start this one: take over what became of it."""
        handle = await give_up(self._store, slot)
        if handle is not None:
            self._roster.started(slot, handle)
            return
        error = "another driver began to start it, so nobody knows whether it ran"
        self._roster.not_started(slot, ReplicaStatus.failed, error, is_unknown=True)

    async def _note_spawned(self, slots: Mapping[int, Slot], handle: ReplicaHandle) -> None:
        """Write the handle down before anything else happens; an error here ends the replica."""
        slot = slots[handle.rank]
        if not await record_call(self._store, handle, slot):
            raise RunError(f"another driver gave up process {slot} while it was being started")
        if not await self._holder.confirm():
            raise RunError(f"another driver took over while process {slot} was being started")
        self._roster.started(slot, handle)
        self._events.emit("spawned", rank=slot.rank, incarnation=slot.incarnation, call_id=handle.call_id)
