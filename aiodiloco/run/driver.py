"""The driver: carries out what is decided about a run, for as long as it holds the lease."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import LaunchError, StoreError
from aiodiloco.events import EventWriter
from aiodiloco.executors.policy import has_succeeded
from aiodiloco.lease import LeaseState
from aiodiloco.records import ReplicaStatus
from aiodiloco.run.decide import Actions, decide, due_at_s, why_stop
from aiodiloco.run.journal import give_up, read_journal
from aiodiloco.run.record import RunOutcome, RunResult, read_cancel, write_result
from aiodiloco.run.starter import Starter

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.executors.calls import Calls
    from aiodiloco.lease import LeaseHolder
    from aiodiloco.run.record import RunRecord
    from aiodiloco.run.roster import Roster
    from aiodiloco.run.wakeup import Wakeup
    from aiodiloco.store import Store

__all__ = ["Driver"]

_log = logging.getLogger(__name__)

_SAY_BOUND_S = 5.0
_AGAIN_S = 1.0
_RESULT_BOUND_S = 30.0
_PAUSE_S = 0.5


class Driver:
    """One generation of driving.

    Its deeds are fenced: before it cancels or starts anything it makes sure that nobody else can have taken over, and
    what it starts counts only if the journal takes it.

    Args:
        store: An open store, rooted at the run.
        calls: To the backend.
        record: What was asked of the run.
        holder: The lease.
        roster: Still empty.
        wakeup: Rung by the roster.
        on_launched: Called once all ranks have been started, or found.

    Attributes:
        roster: What it knows of the processes.
    """

    def __init__(
        self,
        *,
        store: Store,
        calls: Calls,
        record: RunRecord,
        holder: LeaseHolder,
        roster: Roster,
        wakeup: Wakeup,
        on_launched: Callable[[], object],
    ) -> None:
        self.roster = roster
        self._store = store
        self._record = record
        self._holder = holder
        self._wakeup = wakeup
        self._on_launched = on_launched
        self._events = EventWriter(store, f"driver-{holder.generation}")
        self._starter = Starter(
            store=store,
            calls=calls,
            record=record,
            holder=holder,
            roster=roster,
            events=self._events,
            wakeup=wakeup,
        )
        self._stop: str | None = None
        self._lets_go = False

    @property
    def launch_error(self) -> LaunchError | None:
        """Why the run could not be launched, if it could not. A driver that was deposed knows nothing of that."""
        return None if self._holder.deposed else self._starter.launch_error

    def stop(self, reason: str) -> None:
        """End the run: cancel every replica, and write the result. The first reason counts."""
        if self._stop is None:
            self._stop = reason
            self._events.emit("stopping", reason=reason)
            self._wakeup.ring()  # not again: it is called at every look, and each would be followed by another at once

    def let_go(self) -> None:
        """Stop driving, and leave the replicas as they are; another driver may take over at once."""
        self._lets_go = True
        self._wakeup.ring()

    async def run(self, *, is_first: bool) -> RunResult | None:
        """Drive to the end of the run and return its result, or None if deposed or told to let go.

        Args:
            is_first: Nothing was started yet, by anyone: start all ranks, or none.

        Raises:
            StoreError: the journal could not be read, or the result not be written.
        """
        result, error = None, None
        try:
            async with self._events, anyio.create_task_group() as tasks:
                tasks.start_soon(self._holder.keep_beating, self._wakeup.ring)
                tasks.start_soon(self._obey_cancel)
                try:
                    if is_first:
                        self._starter.start_all()
                    else:
                        await self._take_over()
                    result = await self._drive()
                except Exception as exc:  # noqa: BLE001 - raised below, as it is and not in a group
                    error = exc
                tasks.cancel_scope.cancel()
        finally:
            self.roster.group.close()
        if error is not None:
            raise error
        return result

    async def _take_over(self) -> None:
        """Find what the drivers before this one have started, and what nobody knows of."""
        journal = await read_journal(self._store, self._record.n_replicas)
        handles = dict(journal.handles)
        for slot in sorted(journal.unknown):
            if (handle := await give_up(self._store, slot)) is not None:
                handles[slot] = handle
        for slot in sorted(journal.given_up | journal.unknown - handles.keys()):
            error = "its driver died while starting it, so nobody knows whether it ran"
            self.roster.not_started(slot, ReplicaStatus.failed, error, is_unknown=True)
        for slot, handle in sorted(handles.items()):
            self.roster.started(slot, handle)
        self._events.emit("taken_over", generation=self._holder.generation, processes=len(handles))
        self._on_launched()

    async def _drive(self) -> RunResult | None:
        while True:
            self._settle()
            if self._holder.deposed or self._lets_go:
                await self._leave()
                return None
            if time.monotonic() >= self.roster.group.give_up_at():
                self.roster.give_up()
            actions = self._decide()
            if actions.ended is not None and not self._starter.is_busy:
                if (result := await self._finish(actions.ended)) is not None:
                    return result
                continue
            is_done = await self._carry_out(actions)
            await self._wakeup.wait_until(self._next_look(actions) if is_done else time.monotonic() + _AGAIN_S)

    def _settle(self) -> None:
        """Take note of what has happened."""
        had_launched = self._starter.has_launched
        self._starter.settle(self._stop)
        if self._starter.has_launched and not had_launched:
            self._on_launched()
        if self.launch_error is not None:
            self.stop(str(self.launch_error))
        self._tell_ends()
        elapsed_s, spent_gpu_s = self.roster.elapsed_s, self.roster.spent_gpu_s
        if reason := why_stop(self._record, elapsed_s=elapsed_s, spent_gpu_s=spent_gpu_s):
            self.stop(reason)

    def _decide(self) -> Actions:
        attempts, n_replicas = self.roster.attempts(), self._record.n_replicas
        return decide(attempts, n_replicas, self._record.policy, now_s=self.roster.elapsed_s, stop=self._stop)

    def _next_look(self, actions: Actions) -> float:
        """Return until when to wait (`time.monotonic()`), should nothing happen before."""
        elapsed_s, now = self.roster.elapsed_s, time.monotonic()
        due_s = actions.look_again_s
        if self._stop is None:
            spent_gpu_s, num_running = self.roster.spent_gpu_s, self.roster.num_running
            bound_s = due_at_s(self._record, elapsed_s=elapsed_s, spent_gpu_s=spent_gpu_s, num_running=num_running)
            due_s = min(due_s, bound_s)
        confirmed_by = self.roster.group.give_up_at() if self.roster.num_running else float("inf")
        return min(confirmed_by, now + due_s - elapsed_s)

    async def _carry_out(self, actions: Actions) -> bool:
        """Do what was decided; return False if some of it must wait until it is known who drives."""
        if not actions.cancel and not actions.start:
            return True
        drives = await self._holder.ask()
        if drives is False:
            self._wakeup.ring()
            return True
        if self._stop is not None:
            self._starter.abandon()
        self.roster.cancel(actions.cancel, actions.reason)
        if drives:  # else what is ended is ended all the same, and nothing is started
            self._starter.start(actions.start)
        return drives is True or not actions.start

    async def _leave(self) -> None:
        """Stop driving; what is just being started is ended by whoever starts it."""
        self._starter.abandon()
        while self._starter.is_busy:
            await self._wakeup.wait_until(float("inf"))  # a launch that is cancelled bounds itself
            self._starter.settle("its driver left the run")
        if not self._holder.deposed:
            await self._say(LeaseState.released)

    def _tell_ends(self) -> None:
        """Log how processes ended."""
        for slot, row in self.roster.new_ends():
            self._events.emit(
                "ended",
                rank=slot.rank,
                incarnation=slot.incarnation,
                status=row.status.value,
                exit_code=row.exit_code,
                error=row.error,
                preempted=row.preempted,
            )

    async def _finish(self, reason: str) -> RunResult | None:
        """Write the result and return it; None if this driver was deposed: for another the run may go on."""
        if await self._holder.ask() is False:
            return None
        rows = self.roster.rows()
        self._tell_ends()
        if has_succeeded(self._record.policy, rows):
            outcome = RunOutcome.succeeded
        else:
            outcome = RunOutcome.cancelled if self._stop and self.launch_error is None else RunOutcome.failed
        result = RunResult(
            run_id=self._record.run_id,
            outcome=outcome,
            reason=reason,
            rows=rows,
            attempts=self.roster.history(),
            elapsed_s=round(self.roster.elapsed_s, 3),
            spent_gpu_s=round(self.roster.spent_gpu_s, 3),
        )
        self._events.emit("run_ended", outcome=outcome.value, reason=reason)
        written = await self._write(result)
        if written is not None:
            await self._say(LeaseState.ended)
        return written

    async def _write(self, result: RunResult) -> RunResult | None:
        """Write the result and return the one that counts; None if this driver was deposed while the store failed."""
        latest = time.monotonic() + _RESULT_BOUND_S
        while await self._holder.ask() is not False:
            try:
                with anyio.fail_after(_RESULT_BOUND_S):
                    return await write_result(self._store, result)
            except (StoreError, TimeoutError) as exc:
                if time.monotonic() >= latest:
                    raise StoreError(
                        f"run {result.run_id} has ended ({result.reason}), and its result could not be written: {exc}"
                    ) from exc
            await anyio.sleep(_PAUSE_S)
        return None

    async def _say(self, state: LeaseState) -> None:
        """Let others know at once what they would otherwise learn after the lease's time to live."""
        try:
            with anyio.move_on_after(_SAY_BOUND_S):
                await self._holder.beat(state)
        except StoreError as exc:
            _log.warning("cannot tell that the lease is %s: %s", state, exc)

    async def _obey_cancel(self) -> None:
        """End the run when someone asks for it through the store."""
        while True:
            with anyio.move_on_after(self._record.terms.ttl_s / 2):
                try:
                    if (reason := await read_cancel(self._store)) is not None:
                        self.stop(reason)
                        return
                except StoreError as exc:
                    _log.warning("cannot look whether the run is to be ended: %s", exc)
            await anyio.sleep(self._record.terms.beat_s)
