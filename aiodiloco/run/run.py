"""`Run`: a launched group of replicas as one thing to watch, wait for and end."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aiodiloco.errors import AiodilocoError, RunError, StoreError
from aiodiloco.events import Cursor, Event, read_events
from aiodiloco.lease import LeaseState, read_lease
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus
from aiodiloco.run.journal import latest_handles
from aiodiloco.run.record import RunResult, read_result
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiodiloco.executors.core import Executor
    from aiodiloco.run.session import Session
    from aiodiloco.store import Store

__all__ = ["Run", "RunStatus"]

_EVENTS_PER_TURN = 256


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        run_id: Which one.
        result: What came of it, or None while it goes on.
        replicas: One row per rank that was started, in rank order: its latest process.
        generation: How many drivers it has had.
        driver: What its driver last said of itself; None if it never had one. `held` does not say that it lives.
        elapsed_s: Seconds since its launch, as the driver last reported.
        spent_gpu_s: GPU seconds, likewise.
    """

    run_id: str
    result: RunResult | None
    replicas: tuple[ReplicaResult, ...]
    generation: int
    driver: LeaseState | None
    elapsed_s: float
    spent_gpu_s: float


class Run:
    """A run, as `launch` or `attach` gives it; for one event loop."""

    def __init__(self, session: Session, handles: list[ReplicaHandle], *, is_owned: bool) -> None:
        self._session = session
        self._handles = handles
        self._is_owned = is_owned
        self._num_waiters = 0
        self.is_detached = False

    @property
    def run_id(self) -> str:
        """Its name."""
        return self._session.record.run_id

    @property
    def uri(self) -> str:
        """Its own prefix in the store, where its replicas meet: `<store>/runs/<run_id>`."""
        return self._session.uri

    @property
    def executor(self) -> Executor:
        """Where its replicas run."""
        return self._session.executor

    @property
    def n_replicas(self) -> int:
        """How many ranks it has."""
        return self._session.record.n_replicas

    @property
    def handles(self) -> list[ReplicaHandle]:
        """The latest process of each rank, in rank order, as far as this process knows."""
        driver = self._session.driver
        return self._handles if driver is None else driver.roster.handles() or self._handles

    @property
    def is_driving(self) -> bool:
        """Whether this process drives it now, and does not only watch."""
        return self._session.is_driving

    async def wait(self) -> list[ReplicaResult]:
        """Wait for the run's end and return one row per rank, in rank order.

        Cancelling this never ends the run. Where it came from `attach`, waiting is what drives the run once its driver
        is gone; when nobody waits any more the lease is released, so that another process can attach at once.

        Raises:
            RunError: this process was told to leave the run.
            StoreError: the store failed for longer than the lease lasts.
        """
        return list((await self.wait_for_result()).rows)

    async def wait_for_result(self) -> RunResult:
        """Wait as `wait` does, and return all that is known of the run's end."""
        self._session.begin()
        self._num_waiters += 1
        try:
            result = await self._session.wait()
        except anyio.get_cancelled_exc_class():
            if not self._is_owned and self._num_waiters == 1:
                await self._session.executor.calls.finish(self._session.release())
            raise
        finally:
            self._num_waiters -= 1
        if result is None:
            raise RunError(f"this process has left run {self.run_id}; aiodiloco.attach finds it again")
        return result

    async def cancel(self) -> list[ReplicaResult]:
        """End the run, whoever drives it, wait for its end and return its rows.

        A driver elsewhere hears of it within a beat; if there is none, this process takes over and ends it. The order
        lies in the store: should this process die, the next one to attach carries it out.

        Raises:
            StoreError: the store did not take the order, and this process does not drive.
        """
        reason = "cancel() was called"
        self._session.begin()
        self._session.stop(reason)
        try:
            await self._session.ask_for_end(reason)
        except StoreError:
            if self._session.driver is None:
                raise
        return await self.wait()

    def detach(self) -> None:
        """Let the run go on by itself when the `launch` block is left.

        Raises:
            RunError: a lease binds its replicas: without a driver they would end themselves.
        """
        record = self._session.record
        if record.binds_replicas:
            raise RunError(
                f"run {self.run_id} has a lease, so its replicas end {record.terms.ttl_s:g} s after their driver left: "
                "launch it with lease=None to detach"
            )
        self.is_detached = True

    async def status(self) -> RunStatus:
        """Return where the run stands, by its store and its backend.

        Raises:
            StoreError: the store could not be read.
        """
        async with self._session.opened() as store:
            result, document = await read_result(store), await read_lease(store)
            rows = result.rows if result is not None else await self._poll(store)
        return RunStatus(
            run_id=self.run_id,
            result=result,
            replicas=tuple(rows),
            generation=0 if document is None else document.generation,
            driver=None if document is None else document.state,
            elapsed_s=0.0 if document is None else document.elapsed_s,
            spent_gpu_s=0.0 if document is None else document.spent_gpu_s,
        )

    async def events(self, cursor: Cursor | None = None, *, poll_s: float = 0.2) -> AsyncGenerator[Event, None]:
        """Iterate over all events of the run after `cursor`, and over new ones until the run has ended.

        Those of one writer come in order, each exactly once; see `follow_events`. The driver's own are by `driver-1`,
        and so on for each that took over.

        Args:
            cursor: Where an earlier reading stopped; None reads from the beginning.
            poll_s: Seconds between two looks when nothing is new, > 0.

        Raises:
            StoreError: the store could not be read.
        """
        if not 0 < poll_s < float("inf"):
            raise ValueError(f"poll_s must be a number of seconds > 0, not {poll_s!r}")
        cursor = cursor or Cursor()
        while True:
            async with self._session.opened() as store:
                is_over = self._session.has_ended or await read_result(store) is not None  # before the last look
                found, cursor = await read_events(store, cursor)
            for number, event in enumerate(found):
                if number % _EVENTS_PER_TURN == 0:
                    await anyio.lowlevel.checkpoint()
                yield event
            if is_over:
                return
            await anyio.sleep(poll_s)

    async def _poll(self, store: Store) -> list[ReplicaResult]:
        self._handles = await latest_handles(store, self.n_replicas)
        return await map_concurrently(self._poll_one, self._handles)

    async def _poll_one(self, handle: ReplicaHandle) -> ReplicaResult:
        try:
            status, error = await self._session.executor.poll(handle), None
        except AiodilocoError as exc:
            status, error = ReplicaStatus.running, f"its status is not known: {exc}"
        return ReplicaResult(handle.rank, status, error=error, call_id=handle.call_id)
