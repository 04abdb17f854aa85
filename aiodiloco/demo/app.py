"""Drive the demo: launch both runs, watch them, kill a replica, gather what came out."""

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
from aiodiloco.demo.chronicle import Chronicle
from aiodiloco.demo.kill import kill_replica, wait_for_round
from aiodiloco.demo.model import GPT
from aiodiloco.demo.report import DemoReport, held_out_curve, steps_in_rounds
from aiodiloco.demo.train import train_alone, train_with_diloco
from aiodiloco.errors import StoreError
from aiodiloco.events import Event
from aiodiloco.executors import LocalProcessExecutor, Respawn
from aiodiloco.records import new_run_id, raise_for_failures
from aiodiloco.run import launch
from aiodiloco.store import MemoryStore, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from aiodiloco.demo.settings import DemoSettings
    from aiodiloco.records import JSON, ReplicaResult
    from aiodiloco.run import Run

__all__ = ["Watch", "check_demo", "run_demo"]

Watch: TypeAlias = Callable[[str, Event], None]
"""Takes the name of a run, `"diloco"` or `"alone"`, and something that happened in it."""

# A step takes 0.02 s of a core. These bound a replica that hangs, not one that is slow.
_START_BOUND_S = 600.0
_STEP_BOUND_S = 0.5  # times the number of replicas, which may all share one core

_MAX_PREEMPTIONS = 3  # one is on purpose

_log = logging.getLogger(__name__)


async def run_demo(
    settings: DemoSettings, *, store: str | os.PathLike[str] | None = None, watch: Watch | None = None
) -> DemoReport:
    """Train with DiLoCo and alone, side by side on this machine, and return what came out.

    Args:
        settings: What to train, and whether to kill a replica halfway.
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
        root = Path(scratch, "store") if store is None else store
        async with LocalProcessExecutor(root=Path(scratch, "replicas")) as executor:
            return await _train(executor, settings, root, watch)


def check_demo(settings: DemoSettings, store: str | os.PathLike[str] | None = None) -> None:
    """Raise ValueError if no demo can be run with an unknown wire format, or with a store of another kind."""
    if settings.wire not in wire_names():
        raise ValueError(f"wire must be one of {', '.join(wire_names())}, not {settings.wire!r}")
    if store is not None and isinstance(open_store(store), MemoryStore):
        raise ValueError(
            f"store {str(store)!r} lives in one process, and every replica is a process of its own: use a directory"
        )


async def _train(
    executor: LocalProcessExecutor, settings: DemoSettings, root: str | os.PathLike[str], watch: Watch | None
) -> DemoReport:
    began, run_id = time.monotonic(), new_run_id()
    # What fails by itself is not started again: that is an error to be shown.
    policy = Respawn(max_restarts=0, max_preemptions=_MAX_PREEMPTIONS, backoff=settings.pause_s)
    timeout = _START_BOUND_S + settings.steps * settings.replicas * _STEP_BOUND_S
    both: dict[str, JSON] = {
        "steps": settings.steps,
        "seed": settings.seed,
        "evaluate_at": settings.evaluate_at(),
    }
    together: dict[str, JSON] = {
        "sync_every": settings.sync_every,
        "wire": settings.wire,
        "min_replicas": max(1, settings.replicas - 1),
    }
    async with (
        launch(
            executor, train_with_diloco, settings.replicas,
            store=root, timeout=timeout, policy=policy, args={**both, **together}, run_id=run_id,
        ) as diloco_run,
        launch(
            executor, train_alone, 1,
            store=root, timeout=timeout, args={**both, "num_shards": settings.replicas}, run_id=f"{run_id}-alone",
        ) as alone_run,
    ):  # fmt: skip
        diloco, alone = _Part("diloco", diloco_run, watch), _Part("alone", alone_run, watch)
        await _finish(executor, settings, diloco, alone)
    return _make_report(settings, diloco, alone, time.monotonic() - began)


async def _finish(executor: LocalProcessExecutor, settings: DemoSettings, diloco: _Part, alone: _Part) -> None:
    """Watch both runs to their ends, and see to the accident meanwhile."""
    try:
        async with anyio.create_task_group() as accidents:
            if settings.victim is not None:
                accidents.start_soon(_kill_halfway, diloco.run, settings.victim, settings.num_rounds, executor)
            async with anyio.create_task_group() as parts:
                for part in (diloco, alone):
                    parts.start_soon(part.follow)
                    parts.start_soon(part.wait)
            accidents.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # what `watch` or a run raised, perhaps both
        raise _first(group) from None


async def _kill_halfway(run: Run, rank: int, num_rounds: int, executor: LocalProcessExecutor) -> None:
    try:
        await wait_for_round(run, num_rounds // 2)
        await kill_replica(run, rank, executor)
    except StoreError as exc:
        _log.warning("replica %d was not killed: %s", rank, exc)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Part:
    """One run of the demo: what it has logged so far, and how its replicas ended."""

    def __init__(self, name: str, run: Run, watch: Watch | None) -> None:
        self.run = run
        self.events: list[Event] = []
        self.chronicle = Chronicle()
        self.results: Sequence[ReplicaResult] = ()
        self._name = name
        self._watch = watch

    async def wait(self) -> None:
        """Wait for the replicas, and raise ReplicaFailedError unless all succeeded."""
        self.results = await self.run.wait()
        raise_for_failures(self.results)

    async def follow(self) -> None:
        """Take note of events as they come, until the run has ended."""
        try:
            async with aclosing(self.run.events()) as events:
                async for event in events:
                    self._take(event)
        except StoreError as exc:  # the training can do without being watched
            _log.warning("cannot follow the %s run: %s", self._name, exc)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self.chronicle.take(event)
        if self._watch is not None:
            self._watch(self._name, event)


def _make_report(settings: DemoSettings, diloco: _Part, alone: _Part, seconds: float) -> DemoReport:
    replicas = [cast("dict[str, Any]", result.result) for result in diloco.results]
    single = cast("dict[str, Any]", alone.results[0].result)
    undisturbed = [replica for replica in replicas if replica["incarnation"] == 0] or replicas
    loss = undisturbed[0]["held_out_loss"]
    tokens_per_step = replicas[0]["tokens_per_step"]
    return DemoReport(
        settings=settings,
        num_parameters=sum(parameter.numel() for parameter in GPT().parameters()),
        diloco=held_out_curve(diloco.events, last=(settings.steps, loss)),
        alone=held_out_curve(alone.events, last=(settings.steps, single["held_out_loss"])),
        tokens_per_replica=settings.steps * tokens_per_step,
        tokens_together=steps_in_rounds(diloco.chronicle.participation, settings.replicas) * tokens_per_step,
        rounds=replicas[0]["rounds"],
        bytes_sent=sum(replica["bytes_sent"] for replica in undisturbed) // len(undisturbed),
        bytes_received=sum(replica["bytes_received"] for replica in undisturbed) // len(undisturbed),
        replicas_agree=len({replica["weights"] for replica in replicas}) == 1,
        participation=diloco.chronicle.participation,
        outages=diloco.chronicle.outages,
        seconds=seconds,
    )
