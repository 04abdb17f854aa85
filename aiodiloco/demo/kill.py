"""The demo's accident: one replica is killed halfway, on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.keys import RoundKeys
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.records import ReplicaStatus
from aiodiloco.store import open_store

if TYPE_CHECKING:
    from aiodiloco.executors import LocalProcessExecutor
    from aiodiloco.run import Run
    from aiodiloco.store import Store

__all__ = ["kill_replica", "wait_for_round"]

_FIRST_MODEL = 1  # its fragment
_LOOK_S = 0.1


async def wait_for_round(run: Run, number: int) -> None:
    """Return once so many rounds of the run's first model are decided: at once, where its events come a second late."""
    async with open_store(run.uri) as store:
        while not await _is_decided(store, RoundKeys(number - 1, _FIRST_MODEL)):  # noqa: ASYNC110 - by other processes
            await anyio.sleep(_LOOK_S)


async def _is_decided(store: Store, keys: RoundKeys) -> bool:
    with contextlib.suppress(KeyNotFoundError):
        await store.get(keys.decision, length=0)
        return True
    return False


async def kill_replica(run: Run, rank: int, executor: LocalProcessExecutor) -> bool:
    """Kill the process of a rank as a lost machine would, without a warning; return False if it does not run."""
    handle = run.handles[rank]
    pid = handle.metadata["pid"]
    assert isinstance(pid, int), "a local replica's handle has it"
    if await executor.poll(handle) is not ReplicaStatus.running:
        return False
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signal.SIGKILL)
        return True
    return False
