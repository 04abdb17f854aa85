"""`attach`: come back to a run from any process that reaches its store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiodiloco.errors import RunConflictError, RunNotFoundError
from aiodiloco.run.journal import latest_handles
from aiodiloco.run.launching import executor_of, uri_of
from aiodiloco.run.record import read_record
from aiodiloco.run.run import Run
from aiodiloco.run.session import Session
from aiodiloco.store import open_store

if TYPE_CHECKING:
    import os

    from aiodiloco.executors.core import Executor

__all__ = ["attach"]


async def attach(run_id: str, *, store: str | os.PathLike[str], executor: Executor) -> Run:
    """Return the run of this name, with nothing but its store and an executor of its backend.

    While its driver lives, the run is only watched from here. Once the driver is gone, `run.wait()` takes over and
    drives on with the policy, deadline and budget it was launched with: replicas that run are kept, those whose launch
    was interrupted are started. `run.cancel()` ends it in either case.

    Args:
        run_id: As launched.
        store: As given to `launch`.
        executor: Of the same backend; on Modal, one for the same function.

    Raises:
        RunNotFoundError: the store has no such run.
        RunConflictError: it runs on another backend.
        StoreError: the store cannot be read.
    """
    uri = uri_of(store, run_id)
    async with open_store(uri) as run_store:
        record = await read_record(run_store)
        if record is None:
            raise RunNotFoundError(f"no run {run_id!r} under {uri}: launch it, or check store and run_id")
        if record.backend_name != executor_of(executor).backend_name:
            raise RunConflictError(
                f"run {run_id!r} runs on the {record.backend_name!r} backend, and this executor is "
                f"{executor.backend_name!r}: attach with one of the former"
            )
        handles = await latest_handles(run_store, record.n_replicas)
    return Run(Session(executor, uri, record), handles, is_owned=False)
