"""Writing this replica's shares of checkpoints, while training goes on."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

import anyio

from aiodiloco.checkpoint import Share, prune, save_share
from aiodiloco.errors import StoreError

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from aiodiloco.events import EventWriter
    from aiodiloco.store import Store

__all__ = ["CheckpointWriter"]

_log = logging.getLogger(__name__)

_KEPT = 2  # one to recover from, and the one before it while that is being read
_LAST_WRITE_S = 120.0
_WORKER_THREADS = 1


class CheckpointWriter:
    """Takes shares of checkpoints over and writes them in the background, one after the other.

    A store that fails costs a checkpoint, not the training: it is logged, and the next one is tried anew.
    """

    def __init__(self, store: Store, events: EventWriter) -> None:
        self._store = store
        self._events = events
        self._workers = anyio.CapacityLimiter(_WORKER_THREADS)
        self._send, self._receive = anyio.create_memory_object_stream[Share](0)
        self._tasks: TaskGroup | None = None

    async def save(self, share: Share) -> None:
        """Take `share` over; waits until the one before is written, so that at most one is held."""
        await self._send.send(share)

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._write_all)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Finish what is being written, if all went well; bounded."""
        assert self._tasks is not None
        self._send.close()
        if exc_type is None:
            self._tasks.cancel_scope.deadline = anyio.current_time() + _LAST_WRITE_S
        else:
            self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _write_all(self) -> None:
        with self._receive:
            async for share in self._receive:
                try:
                    await self._write(share)
                except StoreError as exc:
                    _log.warning("the checkpoint of round %d lacks this replica's share: %s", share.round, exc)

    async def _write(self, share: Share) -> None:
        began = time.perf_counter()
        is_whole = await save_share(self._store, share, self._workers)
        seconds = time.perf_counter() - began
        self._events.emit("checkpoint", round=share.round, step=share.inner_step, complete=is_whole, seconds=seconds)
        if is_whole:
            await prune(self._store, keep=_KEPT, model_number=share.keys.model_number)
