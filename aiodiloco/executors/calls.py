"""Backend calls that nobody has to wait for longer than they want."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from aiodiloco.executors.awake import awake

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiodiloco.executors.port import Backend
    from aiodiloco.records import ReplicaHandle

__all__ = ["Bell", "Calls", "Job"]

T = TypeVar("T")

_LAST_S = 10.0  # for what is being cancelled when its event loop is shut down
_CLOSE_MARGIN_S = 1.0


class Bell:
    """Wakes everyone who waits, each time it rings."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        event, self._event = self._event, anyio.Event()
        event.set()

    async def wait_until(self, deadline: float) -> bool:
        """Return True at the next ring, or False once `time.monotonic()` has reached `deadline`."""
        with awake(), anyio.move_on_after(max(0.0, deadline - time.monotonic())):
            await self._event.wait()
            return True
        return False


class Job(Generic[T]):
    """One backend call, running in a task of its own.

    Unlike a child of a task group it can be let go of: a call that hangs, even one that swallows its cancellation,
    holds nobody. And unlike an anyio shield it also survives `asyncio.Task.cancel()` of the asker, which is what
    keeps the id of a replica that is just being spawned.

    Attributes:
        task: Its own.
    """

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task

    @property
    def has_ended(self) -> bool:
        """True once the call returned, raised or was cancelled."""
        return self.task.done()

    def value(self) -> T:
        """Return what the call returned, or raise what it raised. Only after it ended."""
        if self.task.cancelled():
            raise InterruptedError("the event loop is shutting down")
        return self.task.result()

    def error(self) -> Exception | None:
        """Return what the call raised, if anything. Only after it ended."""
        try:
            self.value()
        except Exception as exc:  # noqa: BLE001 - whatever a backend raises is reported, not handled
            return exc
        return None

    def abandon(self) -> None:
        """Cancel the call without waiting for it. From any thread."""
        loop = self.task.get_loop()
        if not (self.task.done() or loop.is_closed()):
            loop.call_soon_threadsafe(self.task.cancel)


class Calls:
    """Starts the calls to one backend and keeps them alive until they end."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._tasks: set[asyncio.Task[Any]] = set()  # event loops hold their tasks weakly
        self._cancels: set[asyncio.Task[None]] = set()

    def start(self, call: Coroutine[Any, Any, T], *, on_end: Callable[[], None] | None = None) -> Job[T]:
        """Start `call` and return at once; `on_end` is called in this event loop when it ended, however it ended."""
        task = _running_loop(call).create_task(_translate_exits(call))
        self._tasks.add(task)

        def ended(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()  # an abandoned call's error is nobody's, and no reason for a warning
            if on_end is not None:
                on_end()

        task.add_done_callback(ended)
        return Job(task)

    def cancel(self, handle: ReplicaHandle) -> Job[None]:
        """Start to cancel a replica and return at once; goes on whatever happens to the asker.

        Ends after the backend's `cancel_bound_s` at the latest. If the event loop is shut down before, as `asyncio.run`
        does, the backend is asked once more, and the end of the event loop waits for that, up to 10 s.
        """
        job = self.start(_cancel(self.backend, handle))
        self._cancels.add(job.task)
        job.task.add_done_callback(self._cancels.discard)
        return job

    async def wait_for_cancels(self) -> None:
        """Wait until what is being cancelled in this event loop has been; bounded, not interrupted by anyio scopes."""
        loop = asyncio.get_running_loop()
        if tasks := [task for task in list(self._cancels) if task.get_loop() is loop]:
            with anyio.CancelScope(shield=True), awake():
                await asyncio.wait(tasks, timeout=self.backend.cancel_bound_s + _CLOSE_MARGIN_S)

    async def finish(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what `call` returns, however often the asker is cancelled: for cleanup, which bounds itself.

        A cancelled anyio scope waits for its end. `asyncio.Task.cancel()` stops this wait, and the call goes on.
        """
        bell = Bell()
        job = self.start(call, on_end=bell.ring)
        with anyio.CancelScope(shield=True):
            while not job.has_ended:
                await bell.wait_until(float("inf"))
        return job.value()


def _running_loop(call: Coroutine[Any, Any, object]) -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as exc:
        call.close()
        raise RuntimeError("executors run on asyncio only: use asyncio.run or anyio.run's asyncio backend") from exc


async def _cancel(backend: Backend, handle: ReplicaHandle) -> None:
    try:
        with anyio.fail_after(backend.cancel_bound_s):
            await backend.cancel(handle)
    except asyncio.CancelledError:  # only by the end of the event loop
        with contextlib.suppress(Exception), anyio.move_on_after(min(_LAST_S, backend.cancel_bound_s)):
            await backend.cancel(handle)
        raise


async def _translate_exits(call: Coroutine[Any, Any, T]) -> T:
    try:
        return await call
    except SystemExit as exc:  # a client may re-raise a replica's; out of a task it would stop the event loop
        raise RuntimeError(f"the backend call raised SystemExit({exc.code!r})") from exc
