"""A replica's side of checkpoints: writing its shares while training goes on, and reading them when it comes back."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Self

import anyio

from aiodiloco.checkpoint import Loaded, Share, list_models, list_rounds, load_latest, prune, save_share
from aiodiloco.errors import ChunkError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from anyio.abc import TaskGroup

    from aiodiloco.events import EventWriter
    from aiodiloco.store import Store

__all__ = ["CheckpointWriter", "Recovered", "recover"]

_log = logging.getLogger(__name__)

_KEPT = 2  # one to recover from, and the one before it while that is being read
_LAST_WRITE_S = 120.0
_WORKER_THREADS = 1


class CheckpointWriter:
    """Takes shares of checkpoints over and writes them in the background, one after the other.

    A store that fails costs a checkpoint, not the training: it is logged, and the next one is tried anew.

    Args:
        store: The run's own prefix.
        events: The run's log.
        keep_from: Called with a round and a fragment: rounds before it are not needed to recover any more.
    """

    def __init__(self, store: Store, events: EventWriter, keep_from: Callable[[int, int], None]) -> None:
        self._store = store
        self._events = events
        self._keep_from = keep_from
        self._workers = anyio.CapacityLimiter(_WORKER_THREADS)
        self._send, self._receive = anyio.create_memory_object_stream[Share](0)
        self._tasks: TaskGroup | None = None

    async def save(self, share: Share) -> None:
        """Take `share` over; waits until the one before is written, so that at most one is held."""
        await self._send.send(share)

    async def load(self, model_number: int) -> Loaded:
        """Return the run's latest checkpoint of a model, without what is a replica's own; see `load_latest`."""
        return await load_latest(self._store, model_number)

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
        if exc_type is None and self._tasks.cancel_scope.cancelled_caught:
            _log.warning("the last checkpoint lacks this replica's share: not written within %g s", _LAST_WRITE_S)

    async def _write_all(self) -> None:
        with self._receive:
            async for share in self._receive:
                try:
                    await self._write(share)
                except (StoreError, ChunkError) as exc:
                    _log.warning("the checkpoint of round %d lacks this replica's share: %s", share.round, exc)

    async def _write(self, share: Share) -> None:
        began = time.perf_counter()
        is_whole = await save_share(self._store, share, self._workers)
        seconds = time.perf_counter() - began
        self._events.emit("checkpoint", round=share.round, step=share.inner_step, complete=is_whole, seconds=seconds)
        model_number = share.keys.model_number
        if is_whole:
            await prune(self._store, keep=_KEPT, model_number=model_number)
        rounds = await list_rounds(self._store, model_number)
        if len(rounds) >= _KEPT:  # before that the rounds from the first on are what the run could come back from
            self._keep_from(rounds[-_KEPT], model_number + 1)


@dataclasses.dataclass(frozen=True)
class Recovered:
    """Where a replica goes on.

    Attributes:
        loaded: A checkpoint.
        kept_from: Rounds from this one on must stay in the store: others may go on from an older checkpoint.
    """

    loaded: Loaded
    kept_from: int


async def recover(store: Store, rank: int) -> dict[int, Recovered]:
    """Return the latest checkpoint of each of the run's models, by number, with what was this rank's own in it.

    Where the latest is damaged, that is the one before it; see `load_latest`.

    Raises:
        CheckpointError: none of a model's can be read.
        StoreError: the store cannot be read.
    """
    return {number: await _recover(store, rank, number) for number in await list_models(store)}


async def _recover(store: Store, rank: int, model_number: int) -> Recovered:
    loaded = await load_latest(store, model_number, rank=rank)
    kept = (await list_rounds(store, model_number))[-_KEPT:]
    return Recovered(loaded, min(loaded.round, *kept))
