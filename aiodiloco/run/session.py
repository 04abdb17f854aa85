"""One process's part in a run: it drives while it holds the lease, and watches while another does."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import LaunchError, StoreError
from aiodiloco.executors.calls import Bell
from aiodiloco.lease import LeaseHolder, LeaseState, Report, Vacancy
from aiodiloco.run.driver import Driver
from aiodiloco.run.observe import observe
from aiodiloco.run.record import RunResult, read_result, write_cancel
from aiodiloco.run.roster import Roster
from aiodiloco.run.wakeup import Wakeup
from aiodiloco.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.executors.calls import Job
    from aiodiloco.executors.core import Executor
    from aiodiloco.run.record import RunRecord
    from aiodiloco.store import Store

__all__ = ["Session"]

_log = logging.getLogger(__name__)

_SAY_BOUND_S = 10.0
_END_MARGIN_S = 20.0  # beyond the backend's own bound: for a launch to be undone, and for the result to be written


class Session:
    """Drives or watches, in a task of its own that survives whoever began it, however that one is cancelled.

    Args:
        executor: Runs the replicas.
        uri: Of the run.
        record: What was asked of it.
        store: An open store to use, rooted at the run; None opens one while it is needed.

    Attributes:
        driver: While this process drives, and after it drove to the end.
        has_launched: True once all ranks have been started, or found, by this process, or another drives.
        launch_error: Why this process could not launch the run, if it could not.
    """

    def __init__(self, executor: Executor, uri: str, record: RunRecord, store: Store | None = None) -> None:
        self.executor = executor
        self.uri = uri
        self.record = record
        self.driver: Driver | None = None
        self.has_launched = False
        self.launch_error: LaunchError | None = None
        self._store = store
        self._bell = Bell()
        self._job: Job[RunResult | None] | None = None
        self._is_driving = False
        self._lets_go = False
        self._stop: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it neither drives nor watches, having begun."""
        return self._job is not None and self._job.has_ended

    @property
    def is_driving(self) -> bool:
        """Whether it drives, or is about to, rather than to watch."""
        return self._is_driving

    def begin(self, vacancy: Vacancy | None = None, *, is_first: bool = False) -> None:
        """Begin to drive or to watch, unless that goes on already.

        Args:
            vacancy: Where there is no driver; None watches first.
            is_first: This process has just written the run's record.
        """
        if self._job is None or (self._job.has_ended and self._result() is None):
            self._lets_go = False
            self._is_driving = vacancy is not None
            self._job = self.executor.calls.start(self._pursue(vacancy, is_first), on_end=self._bell.ring)

    async def end_vacant(self, vacancy: Vacancy, reason: str) -> RunResult | None:
        """End a run that has no driver, and return its result, or None if somebody else drives it now."""
        self.stop(reason)
        async with self.opened() as store:
            driving = self._try_to_drive(store, vacancy, is_first=False)
            self._is_driving = True
            self._job = self.executor.calls.start(driving, on_end=self._bell.ring)
            try:
                return await self.wait()
            except anyio.get_cancelled_exc_class():
                await self.executor.calls.finish(self.release())
                raise

    async def wait_until_launched(self) -> None:
        """Return when all ranks have been started, or this session has ended.

        Raises:
            LaunchError: a rank could not be started.
            StoreError: the store failed before that was known.
        """
        while not self.has_launched and not self.has_ended:
            await self._bell.wait_until(float("inf"))
        if self.launch_error is not None:
            raise self.launch_error
        if self._job is not None and self._job.has_ended:
            self._job.value()

    async def wait(self) -> RunResult | None:
        """Return the result once there is one, or None if this session let go. Cancelling this leaves it going."""
        assert self._job is not None
        while not self._job.has_ended:
            await self._bell.wait_until(float("inf"))
        return self._job.value()

    def forget_store(self) -> None:
        """Open the store anew from now on, when it is needed: the one that was given is about to be closed."""
        self._store = None

    def stop(self, reason: str) -> None:
        """End the run, if this process drives or comes to drive."""
        self._stop = self._stop or reason
        if self.driver is not None:
            self.driver.stop(reason)

    def let_go(self) -> None:
        """Stop driving or watching, and leave the replicas as they are."""
        self._lets_go = True
        if self._is_driving:
            if self.driver is not None:
                self.driver.let_go()
        elif self._job is not None:
            self._job.abandon()

    async def end(self, reason: str) -> None:
        """Have the run ended if this process drives it, else stop watching. Bounds itself."""
        if self._job is None:
            return
        if self._is_driving:
            self.stop(reason)
        else:
            self._job.abandon()
        latest = time.monotonic() + self.executor.calls.backend.cancel_bound_s + _END_MARGIN_S
        while not self._job.has_ended and time.monotonic() < latest:
            await self._bell.wait_until(latest)
        if not self._job.has_ended:
            _log.error("run %s could not be ended in time (%s); `aiodiloco.reap` will", self.record.run_id, reason)
            self._job.abandon()

    async def release(self) -> None:
        """Do what `let_go` does, and wait for it. Bounds itself."""
        self.let_go()
        latest = time.monotonic() + _END_MARGIN_S
        while not self.has_ended and time.monotonic() < latest:
            await self._bell.wait_until(latest)

    async def ask_for_end(self, reason: str) -> None:
        """Leave word in the store that the run is to be ended, for whoever drives it now or later.

        Raises:
            StoreError: the store did not take it, or not within 10 s.
        """
        try:
            async with self.opened() as store:
                with anyio.fail_after(_SAY_BOUND_S):
                    await write_cancel(store, reason)
        except TimeoutError as exc:
            raise StoreError(f"{self.uri} did not take the order to end within {_SAY_BOUND_S:g} s") from exc

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """Have the run's store open."""
        if self._store is not None:
            yield self._store
            return
        async with open_store(self.uri) as store:
            yield store

    async def _pursue(self, vacancy: Vacancy | None, is_first: bool) -> RunResult | None:
        async with self.opened() as store:
            while True:
                if vacancy is None:
                    seen = await observe(store, self.record.terms)
                    if isinstance(seen, RunResult):
                        return seen
                    vacancy = seen
                result = await self._try_to_drive(store, vacancy, is_first=is_first)
                if result is not None or self._lets_go:
                    return result
                vacancy, is_first = None, False
                self._note_launched()  # or it will be, by whoever drives now

    async def _try_to_drive(self, store: Store, vacancy: Vacancy, *, is_first: bool) -> RunResult | None:
        self._is_driving = True
        try:
            driver = await self._take(store, vacancy)
            if driver is None:
                return None
            self.driver = driver
            if self._stop is not None:
                driver.stop(self._stop)
            if self._lets_go:
                driver.let_go()
            if not is_first and (result := await read_result(store)) is not None:  # ended since it was looked for
                return result
            result = await driver.run(is_first=is_first)
            self.launch_error = driver.launch_error
            return result
        finally:
            self._is_driving = False

    async def _take(self, store: Store, vacancy: Vacancy) -> Driver | None:
        """Win the next generation; None if another did."""
        wakeup, record = Wakeup(), self.record
        roster = Roster(
            self.executor.calls,
            record.n_replicas,
            record.gpus_per_replica,
            _before(vacancy, record),
            on_change=wakeup.ring,
        )
        generation = 1 if vacancy.document is None else vacancy.document.generation + 1
        holder = await LeaseHolder.acquire(store, record.terms, generation, roster.report)
        if holder is None:
            return None
        return Driver(
            store=store,
            calls=self.executor.calls,
            record=record,
            holder=holder,
            roster=roster,
            wakeup=wakeup,
            on_launched=self._note_launched,
        )

    def _result(self) -> RunResult | None:
        has_value = self._job is not None and self._job.has_ended and self._job.error() is None
        return self._job.value() if self._job is not None and has_value else None

    def _note_launched(self) -> None:
        self.has_launched = True
        self._bell.ring()


def _before(vacancy: Vacancy, record: RunRecord) -> Report:
    """Return where the last driver left the run; the silence in which it was watched counts."""
    document = vacancy.document
    if document is None:
        return Report()
    silent_s = vacancy.silent_s if document.state is LeaseState.held else 0.0
    spent_gpu_s = document.spent_gpu_s + silent_s * record.n_replicas * record.gpus_per_replica
    return Report(document.elapsed_s + silent_s, spent_gpu_s, document.incarnations)
