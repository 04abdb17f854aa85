"""`Hold`: one run that this process drives, or would drive on if its driver were gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import RunError, StoreError
from aiodiloco.executors.calls import Bell
from aiodiloco.run.attaching import attach

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from aiodiloco.executors.calls import Job
    from aiodiloco.executors.core import Executor
    from aiodiloco.run.run import Run

__all__ = ["Hold"]

_log = logging.getLogger(__name__)

_AGAIN_S = 2.0


class Hold:
    """Keeps a run in a task of its own, which outlives the request that began it, and can be let go of.

    Args:
        executor: Of the run's backend.
        run_id: Which run.
        on_end: Called when nothing is held any more.

    Attributes:
        run: As soon as there is one.
        error: Why there is none.
    """

    def __init__(self, executor: Executor, run_id: str, on_end: Callable[[], object]) -> None:
        self.run_id = run_id
        self.run: Run | None = None
        self.error: Exception | None = None
        self._executor = executor
        self._on_end = on_end
        self._bell = Bell()
        self._waiting = anyio.CancelScope()
        self._is_launched_here = False
        self._job: Job[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing is held any more: the run is over, left, or was never launched."""
        return self._job is not None and self._job.has_ended

    @property
    def is_driver(self) -> bool:
        """Whether the run would have no driver without this process."""
        return self._is_launched_here if self.run is None else self.run.is_driving

    def launch(self, launching: AbstractAsyncContextManager[Run]) -> None:
        """Begin to launch, and to hold what is launched."""
        self._is_launched_here = True
        self._begin(self._launch(launching))

    def attach(self, store: str | os.PathLike[str]) -> None:
        """Begin to watch a run, and to drive it once its driver is gone."""
        self._begin(self._attach(store))

    async def wait_for_run(self, until: float) -> Run | None:
        """Return the run once it is launched, or None where that has not happened by then (`time.monotonic()`).

        Raises:
            AiodilocoError, ValueError, TypeError: it cannot be launched.
        """
        await self._wait(lambda: self.run is not None or self.has_ended, until)
        if self.run is None and self.error is not None:
            raise self.error
        return self.run

    async def wait_for_end(self, until: float) -> bool:
        """Return whether nothing is held any more, at that time (`time.monotonic()`) at the latest."""
        await self._wait(lambda: self.has_ended, until)
        return self.has_ended

    def end(self) -> None:
        """Have the run ended, without waiting for it."""
        if self.run is None:
            if self._job is not None:
                self._job.abandon()  # a launch that is cancelled undoes itself
        else:
            self._executor.calls.start(self._cancel(self.run))

    def leave(self) -> None:
        """Let the run go on without this process; another can drive it on at once."""
        self._waiting.cancel()
        if not self._is_launched_here and self._job is not None:
            self._job.abandon()

    def _begin(self, holding: Coroutine[Any, Any, None]) -> None:
        self._job = self._executor.calls.start(holding, on_end=self._end)

    def _end(self) -> None:
        assert self._job is not None
        self.error = self.error or self._job.error()
        self._bell.ring()
        self._on_end()

    async def _wait(self, is_there: Callable[[], bool], until: float) -> None:
        while not is_there() and await self._bell.wait_until(until):
            pass

    async def _launch(self, launching: AbstractAsyncContextManager[Run]) -> None:
        async with launching as run:
            self._found(run)
            with self._waiting:
                await run.wait()
            # Not run.detach(): where a lease binds the replicas that refuses, for nobody may come. Here somebody will.
            run.is_detached = self._waiting.cancel_called

    async def _attach(self, store: str | os.PathLike[str]) -> None:
        while True:
            try:
                run = self.run or await attach(self.run_id, store=store, executor=self._executor)
                self._found(run)
                await run.wait()
            except StoreError as exc:
                _log.warning("run %s cannot be watched, and is looked for again: %s", self.run_id, exc)
            else:
                return
            await anyio.sleep(_AGAIN_S)

    def _found(self, run: Run) -> None:
        self.run = run
        self._bell.ring()

    async def _cancel(self, run: Run) -> None:
        try:
            await run.cancel()
        except (RunError, StoreError) as exc:
            _log.warning("run %s was not seen to end: %s", self.run_id, exc)
