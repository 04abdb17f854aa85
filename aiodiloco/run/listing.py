"""`list_runs`: what runs a store holds, and where each stands."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.lease import LeaseDocument, LeaseState, read_lease
from aiodiloco.run.record import RunRecord, RunResult, read_record, read_result
from aiodiloco.store import join_uri, open_store
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    import os
    from typing import Any

    from aiodiloco.store import Store

__all__ = ["RunSummary", "list_run_ids", "list_runs"]

_RUNS = "runs/"
_AFTER_SLASH = "0"  # the character after "/": sorts after all keys below a run
_BEATS = 1.5  # to wait for: one, and what it may be late


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """One run of a store.

    Attributes:
        run_id: Its name.
        record: What was asked for; None where it cannot be read, or replicas were started by hand.
        result: What came of it, or None while it goes on.
        lease: The last its driver said of itself; None if it never had one.
        is_driven: Whether a driver was seen to live; None where nobody looked for that.
    """

    run_id: str
    record: RunRecord | None
    result: RunResult | None
    lease: LeaseDocument | None
    is_driven: bool | None = None

    @property
    def state(self) -> str:
        """Where it stands, in a word or two: how it ended, or whether somebody drives it."""
        if self.result is not None:
            return self.result.outcome.value
        if self.record is None:
            return "unknown"
        if self.lease is None:
            return "never driven"
        if self.is_driven:
            return "running"
        if not self.record.binds_replicas:
            return "on its own"
        return "driver gone" if self.lease.state is LeaseState.released or self.is_driven is False else "not ended"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        record, end = self.record, self.result or self.lease
        return {
            "run_id": self.run_id,
            "state": self.state,
            "backend": record.backend_name if record else None,
            "n_replicas": record.n_replicas if record else None,
            "gpu": record.gpu if record else None,
            "entrypoint": record.entrypoint if record else None,
            "driver_generation": self.lease.generation if self.lease else 0,
            "elapsed_s": end.elapsed_s if end else 0.0,
            "spent_gpu_s": end.spent_gpu_s if end else 0.0,
            "reason": self.result.reason if self.result else None,
        }


async def list_runs(store: str | os.PathLike[str], *, look_for_drivers: bool = False) -> list[RunSummary]:
    """Return every run under `store`, in the order of their names.

    Args:
        store: As given to `launch`.
        look_for_drivers: Also watch each run that has not ended for a beat and a half, to see whether it has a driver:
            15 seconds where the lease is 60.

    Raises:
        StoreError: the store cannot be read.
    """
    async with open_store(store) as root:
        run_ids = await list_run_ids(root)
    return await map_concurrently(partial(_summarize, store, look_for_drivers=look_for_drivers), run_ids, limit=64)


async def list_run_ids(root: Store) -> list[str]:
    """Return the run ids under an open store: one short listing for each, however much a run has written."""
    run_ids: list[str] = []
    after = _RUNS
    while (key := await _first_key(root, after)) is not None:
        run_ids.append(key.split("/")[1])
        after = f"{_RUNS}{run_ids[-1]}{_AFTER_SLASH}"
    return run_ids


async def _first_key(root: Store, after: str) -> str | None:
    listing = root.list(_RUNS, start_after=after)
    try:
        async for key in listing:
            return key
        return None
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()


async def _summarize(store: str | os.PathLike[str], run_id: str, *, look_for_drivers: bool) -> RunSummary:
    try:
        async with open_store(join_uri(store, "runs", run_id)) as run_store:
            record, lease = await read_record(run_store), await read_lease(run_store)
            is_driven = None
            if look_for_drivers and lease is not None and lease.state is LeaseState.held:
                is_driven = await _moves(run_store, lease)
            return RunSummary(run_id, record, await read_result(run_store), lease, is_driven)
    except StoreError:  # something else lies there
        return RunSummary(run_id, None, None, None)


async def _moves(store: Store, lease: LeaseDocument) -> bool:
    await anyio.sleep(_BEATS * lease.terms.beat_s)
    later = await read_lease(store)
    return later is not None and later.mark != lease.mark
