"""`Service`: the runs and streams of one process, from the start of its server to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
from fastapi import HTTPException

from aiodiloco.errors import AiodilocoError
from aiodiloco.executors.entrypoint import name_of
from aiodiloco.fastapi.feeds import Feeds
from aiodiloco.fastapi.hold import Hold
from aiodiloco.fastapi.signals import told_of_shutdown
from aiodiloco.run.listing import list_runs
from aiodiloco.store import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import TaskGroup

    from aiodiloco.executors.core import Executor
    from aiodiloco.executors.serverless import Entrypoint
    from aiodiloco.run.run import Run
    from aiodiloco.store import Store

__all__ = ["OnShutdown", "Service"]

_log = logging.getLogger(__name__)

OnShutdown: TypeAlias = Literal["cancel", "detach"]

_END_S = 1.5  # for runs to end or to be left: with what the server needs for itself, two seconds
_LAUNCH_S = 60.0  # for which a request waits; the launch goes on after that
_AGAIN_S = 5.0
_READY_S = 5.0


class Service:
    """Holds the runs that were asked for here, and those that an earlier process has left.

    Args:
        executor: Where replicas run.
        store: Where runs are kept.
        entrypoints: Public name -> what it runs.
        on_shutdown: What becomes of the runs that this process drives when it ends.

    Attributes:
        entrypoints: Public name -> `"module:function"`, or None where the executor has its function.
    """

    def __init__(
        self,
        executor: Executor,
        store: str | os.PathLike[str],
        entrypoints: Mapping[str, Entrypoint | None],
        on_shutdown: OnShutdown,
    ) -> None:
        self.executor = executor
        self.store = store
        self.entrypoints = {name: name_of(value) if callable(value) else value for name, value in entrypoints.items()}
        self._on_shutdown = on_shutdown
        self._holds: dict[str, Hold] = {}
        self._feeds: Feeds | None = None
        self._num_entered = 0
        self._ends = anyio.Event()
        self._is_ending = False
        self._has_attached = False
        self._give_up_at = 0.0

    @property
    def feeds(self) -> Feeds:
        """What is being streamed.

        Raises:
            HTTPException: 503 outside the lifespan, or once it ends.
        """
        if self._feeds is None:
            raise HTTPException(
                503,
                "the service was not started: include_router passes its lifespan on to the app; where it is mounted "
                "another way, make the app with FastAPI(lifespan=aiodiloco.fastapi.lifespan(router))",
            )
        if self._is_ending:
            raise HTTPException(503, "the service is shutting down: ask again in a moment")
        return self._feeds

    @property
    def num_held(self) -> int:
        """How many runs this process holds."""
        return len(self._holds)

    def hold_of(self, run_id: str) -> Hold | None:
        """Return this process's hold of a run, if it has one."""
        return self._holds.get(run_id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Serve while the block is open: take up what an earlier process left; at the end, end or leave all runs."""
        self._num_entered += 1
        try:
            if self._num_entered > 1:  # an app whose router has its own lifespan, and that was given it, too
                yield
                return
            loop = asyncio.get_running_loop()
            with told_of_shutdown(lambda: loop.call_soon_threadsafe(self.begin_shutdown)):
                async with anyio.create_task_group() as tasks:
                    self._begin(tasks)
                    try:
                        yield
                    finally:
                        self.begin_shutdown()
                        with anyio.CancelScope(shield=True):
                            await self._finish()
                        self._feeds = None
                        tasks.cancel_scope.cancel()
        finally:
            self._num_entered -= 1

    def begin_shutdown(self) -> None:
        """End all streams, refuse what is new, and begin to end or to leave the runs. Idempotent.

        Called when the process is told to end: servers wait for open streams before they say so to their application.
        """
        if self._is_ending or self._feeds is None:
            return
        self._is_ending = True
        self._ends.set()
        self._give_up_at = time.monotonic() + _END_S
        self._feeds.close()
        for hold in list(self._holds.values()):
            if self._on_shutdown == "cancel" and hold.is_driver:
                hold.end()
            else:
                hold.leave()

    async def launch(self, run_id: str, launching: AbstractAsyncContextManager[Run]) -> Run | None:
        """Launch a run and hold it; return it, or None where its launch takes longer than a request should.

        Raises:
            AiodilocoError, ValueError, TypeError: it cannot be launched.
            HTTPException: 503 outside the lifespan, or once it ends.
        """
        _ = self.feeds
        if run_id in self._holds:  # asked for again: this checks that it is the same, and adds nothing
            async with launching as run:
                run.is_detached = True
            return run
        hold = self._new_hold(run_id)
        hold.launch(launching)
        return await hold.wait_for_run(time.monotonic() + _LAUNCH_S)

    async def is_ready(self) -> bool:
        """Whether runs that an earlier process left are held, and the store answers.

        Raises:
            StoreError: the store says that it cannot.
        """
        if not self._has_attached or self._is_ending:
            return False
        with anyio.move_on_after(_READY_S):
            async with open_store(self.store) as store:
                return await _answers(store)
        return False

    async def wait_for_shutdown(self) -> None:
        """Return when this process has been told to end."""
        await self._ends.wait()

    def _begin(self, tasks: TaskGroup) -> None:
        self._feeds = Feeds(tasks)
        self._ends, self._is_ending, self._has_attached = anyio.Event(), False, False
        tasks.start_soon(self._attach_to_all)

    async def _finish(self) -> None:
        for hold in list(self._holds.values()):
            if not await hold.wait_for_end(self._give_up_at):
                _log.error(
                    "run %s did not end in time; the order to end it is in the store, and what binds its replicas to "
                    "a driver ends them; or aiodiloco.reap does",
                    hold.run_id,
                )

    async def _attach_to_all(self) -> None:
        """Hold every run that goes on, of this backend and of an entrypoint that is served here."""
        while not self._is_ending:
            try:
                for summary in await list_runs(self.store):
                    record = summary.record
                    if record is None or summary.result is not None or summary.run_id in self._holds:
                        continue
                    if record.backend_name == self.executor.backend_name and self._serves(record.entrypoint):
                        self._new_hold(summary.run_id).attach(self.store)
            except AiodilocoError as exc:
                _log.warning("cannot look for runs to take up, and try again: %s", exc)
                await anyio.sleep(_AGAIN_S)
            else:
                self._has_attached = True
                return

    def _serves(self, entrypoint: str | None) -> bool:
        return entrypoint in self.entrypoints.values()

    def _new_hold(self, run_id: str) -> Hold:
        hold = self._holds[run_id] = Hold(self.executor, run_id, on_end=lambda: self._forget(run_id))
        return hold

    def _forget(self, run_id: str) -> None:
        hold = self._holds.pop(run_id)
        if hold.error is not None and not self._is_ending:
            _log.warning("run %s is not held any more: %s", run_id, hold.error)


async def _answers(store: Store) -> bool:
    """Return True; one short listing."""
    listing = store.list("runs/")
    try:
        async for _ in listing:
            break
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()
    return True
