"""Drive the demo: launch both runs, follow their event logs, gather what came out."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio

from aiodiloco.codec import wire_names
from aiodiloco.demo.model import GPT
from aiodiloco.demo.report import DemoReport, held_out_curve
from aiodiloco.demo.train import train_alone, train_with_diloco
from aiodiloco.errors import StoreError
from aiodiloco.events import Cursor, Event, follow_events, read_events
from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.records import new_run_id, raise_for_failures
from aiodiloco.store import MemoryStore, join_uri, open_store, probe

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from aiodiloco.demo.settings import DemoSettings
    from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult
    from aiodiloco.store import Store

__all__ = ["Watch", "check_demo", "run_demo"]

Watch: TypeAlias = Callable[[str, Event], None]
"""Takes the name of a run, `"diloco"` or `"alone"`, and something that happened in it."""

# A step takes 0.02 s of a core. These bound a replica that hangs, not one that is slow.
_START_BOUND_S = 600.0
_STEP_BOUND_S = 0.5  # times the number of replicas, which may all share one core

_log = logging.getLogger(__name__)


async def run_demo(
    settings: DemoSettings, *, store: str | os.PathLike[str] | None = None, watch: Watch | None = None
) -> DemoReport:
    """Train with DiLoCo and alone, side by side on this machine, and return what came out.

    Args:
        settings: What to train.
        store: Where the replicas meet; what they leave there stays. None is a temporary directory.
        watch: Called with every event of both runs, soon after it happened.

    Raises:
        ValueError: see `check_demo`.
        StoreError: the store cannot be used.
        ReplicaFailedError: a replica did not succeed; the others were ended.
        Exception: whatever `watch` raised, after all replicas were ended.
    """
    check_demo(settings, store)
    with tempfile.TemporaryDirectory(prefix="aiodiloco-demo-", ignore_cleanup_errors=True) as scratch:
        root, run_id = Path(scratch, "store") if store is None else store, new_run_id()
        async with (
            open_store(join_uri(root, "runs", run_id)) as diloco_store,
            open_store(join_uri(root, "runs", f"{run_id}-alone")) as alone_store,
            LocalProcessExecutor(root=Path(scratch, "replicas")) as executor,
        ):
            await probe(diloco_store)
            runs = (_Run("diloco", diloco_store, watch), _Run("alone", alone_store, watch))
            return await _train(executor, settings, run_id, *runs)


def check_demo(settings: DemoSettings, store: str | os.PathLike[str] | None = None) -> None:
    """Raise ValueError if no demo can be run with an unknown wire format, or with a store of another kind."""
    if settings.wire not in wire_names():
        raise ValueError(f"wire must be one of {', '.join(wire_names())}, not {settings.wire!r}")
    if store is not None and isinstance(open_store(store), MemoryStore):
        raise ValueError(
            f"store {str(store)!r} lives in one process, and every replica is a process of its own: use a directory"
        )


async def _train(
    executor: LocalProcessExecutor, settings: DemoSettings, run_id: str, diloco: _Run, alone: _Run
) -> DemoReport:
    began = time.monotonic()
    both: dict[str, JSON] = {
        "world_size": settings.replicas,
        "steps": settings.steps,
        "seed": settings.seed,
        "evaluate_at": settings.evaluate_at(),
    }
    together: dict[str, JSON] = {"sync_every": settings.sync_every, "wire": settings.wire}
    args = {**both, **together, "rendezvous_uri": diloco.store.uri}
    bound = _START_BOUND_S + settings.steps * settings.replicas * _STEP_BOUND_S
    handles = await executor.launch_replicas(settings.replicas, train_with_diloco, args, timeout=bound, run_id=run_id)
    args = {**both, "rendezvous_uri": alone.store.uri}
    handles += await executor.launch_replicas(1, train_alone, args, timeout=bound, run_id=f"{run_id}-alone")
    results = await _collect(executor, handles, (diloco, alone))
    raise_for_failures(results)
    return _make_report(settings, diloco, alone, results, time.monotonic() - began)


async def _collect(
    executor: LocalProcessExecutor, handles: Sequence[ReplicaHandle], runs: Sequence[_Run]
) -> list[ReplicaResult]:
    """Return the replicas' results, following their logs meanwhile."""
    try:
        async with anyio.create_task_group() as tg:
            for run in runs:
                tg.start_soon(run.follow)
            results = await executor.collect(handles)
            tg.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # what `watch` raised, perhaps for both runs
        raise group.exceptions[0] from None
    for run in runs:
        await run.catch_up()
    return results


class _Run:
    """One run as the driver sees it: where it meets, and what it has logged so far."""

    def __init__(self, name: str, store: Store, watch: Watch | None) -> None:
        self.name = name
        self.store = store
        self.events: list[Event] = []
        self._watch = watch
        self._cursor = Cursor()

    async def follow(self) -> None:
        """Take note of events as they come, until cancelled."""
        try:
            async with aclosing(follow_events(self.store, self._cursor)) as events:
                async for event in events:
                    self._take(event)
        except StoreError as exc:  # the training can do without being watched
            _log.warning("cannot follow the %s run: %s", self.name, exc)

    async def catch_up(self) -> None:
        """Take note of what was logged since."""
        events, _ = await read_events(self.store, self._cursor)
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        self._cursor = self._cursor.after(event)
        self.events.append(event)
        if self._watch is not None:
            self._watch(self.name, event)


def _make_report(
    settings: DemoSettings, diloco: _Run, alone: _Run, results: Sequence[ReplicaResult], seconds: float
) -> DemoReport:
    *replicas, single = (cast("dict[str, Any]", result.result) for result in results)
    losses = [replica["held_out_loss"] for replica in replicas]
    return DemoReport(
        settings=settings,
        num_parameters=sum(parameter.numel() for parameter in GPT().parameters()),
        diloco=held_out_curve(diloco.events, last=(settings.steps, losses[0])),
        alone=held_out_curve(alone.events, last=(settings.steps, single["held_out_loss"])),
        tokens_per_replica=single["tokens"],
        rounds=replicas[0]["rounds"],
        bytes_sent=sum(replica["bytes_sent"] for replica in replicas) // len(replicas),
        bytes_received=sum(replica["bytes_received"] for replica in replicas) // len(replicas),
        replicas_agree=len(set(losses)) == 1,
        seconds=seconds,
    )
