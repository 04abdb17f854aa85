"""`reap`: end what drivers that died have left behind."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from aiodiloco.errors import RunConflictError, RunNotFoundError, StoreError
from aiodiloco.run.launching import executor_of, uri_of
from aiodiloco.run.listing import list_run_ids
from aiodiloco.run.observe import find_vacancy
from aiodiloco.run.record import RunResult, read_record, read_result
from aiodiloco.run.session import Session
from aiodiloco.store import open_store
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    import os

    from aiodiloco.executors.core import Executor
    from aiodiloco.run.record import RunRecord

__all__ = ["reap"]

_log = logging.getLogger(__name__)

_REASON = "reaped: its driver was gone"
_NUM_AT_ONCE = 64  # each is watched for as long as its lease lasts


async def reap(store: str | os.PathLike[str], executor: Executor, *, run_id: str | None = None) -> list[RunResult]:
    """End every run under `store` that has no driver any more, and return what came of each.

    A run is watched for as long as its lease lasts first: one whose driver lives is never touched. Every process that
    its journal names is cancelled, that is confirmed, and the result is written. Runs of other backends are left to
    reapers of theirs, and runs launched with `lease=None` to whoever names them. Repeating it, or several at once, does
    no harm: of several, one ends a run and returns it.

    Args:
        store: As given to `launch`.
        executor: Of the runs' backend.
        run_id: Only this run, also if it was launched with `lease=None`.

    Raises:
        RunNotFoundError, RunConflictError: there is no run `run_id`, or it runs on another backend.
        StoreError: the store cannot be read.
    """
    executor_of(executor)
    if run_id is not None:
        run_ids = [run_id]
    else:
        async with open_store(store) as root:
            run_ids = await list_run_ids(root)
    reap_one = partial(_reap_one, store, executor, is_named=run_id is not None)
    ended = await map_concurrently(reap_one, run_ids, limit=_NUM_AT_ONCE)
    return [result for result in ended if result is not None]


async def _reap_one(
    store: str | os.PathLike[str], executor: Executor, run_id: str, *, is_named: bool
) -> RunResult | None:
    uri = uri_of(store, run_id)
    async with open_store(uri) as run_store:
        try:
            record = await read_record(run_store)
        except StoreError as exc:
            if is_named:
                raise
            _log.info("passed over %s: %s", uri, exc)
            return None
        if is_named:
            _check(record, run_id, uri, executor)
        is_ours = record is not None and record.backend_name == executor.backend_name
        if record is None or not is_ours or not (record.binds_replicas or is_named):
            return None
        if await read_result(run_store) is not None:
            return None
        try:
            vacancy = await find_vacancy(run_store, record.terms)
        except StoreError as exc:  # whether its driver lives is not known: leave it alone
            if is_named:
                raise
            _log.warning("passed over %s: %s", uri, exc)
            return None
        if vacancy is None:
            return None
        return await Session(executor, uri, record, run_store).end_vacant(vacancy, _REASON)


def _check(record: RunRecord | None, run_id: str, uri: str, executor: Executor) -> None:
    if record is None:
        raise RunNotFoundError(f"no run {run_id!r} under {uri}: check store and run_id")
    if record.backend_name != executor.backend_name:
        raise RunConflictError(
            f"run {run_id!r} runs on the {record.backend_name!r} backend, and this executor is "
            f"{executor.backend_name!r}: reap it with one of the former"
        )
