"""Asyncio-native DiLoCo: train one model on many serverless GPUs that meet only in an object store.

Every public name is importable from here. What needs torch is imported when first used, so that a driver or a service
that only launches and watches never loads it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodiloco.checkpoint import load_checkpoint
    from aiodiloco.collective import AllReduceReport, Link, ObjectStoreAllReduce
    from aiodiloco.collective.plan import Algorithm
    from aiodiloco.diloco import DiLoCo, NesterovSGD, OuterOptimizerFactory, Stateful, SyncDiLoCo
    from aiodiloco.errors import (
        AiodilocoError,
        CheckpointError,
        ChunkError,
        CollectiveError,
        EntrypointError,
        ExecutorError,
        HandleError,
        KeyNotFoundError,
        LaunchError,
        LeaseExpiredError,
        RankTakenError,
        ReplicaFailedError,
        RoundGoneError,
        RoundRefusedError,
        RoundTimeoutError,
        RunConflictError,
        RunError,
        RunNotFoundError,
        StoreAccessError,
        StoreError,
        StoreUnavailableError,
        StoreUnsupportedError,
        WorldSizeError,
    )
    from aiodiloco.events import Cursor, Event, EventWriter, follow_events, read_events
    from aiodiloco.executors import FailFast, LocalProcessExecutor, Quorum, Respawn, ServerlessExecutor, WaitAll
    from aiodiloco.executors.modal import ModalExecutor, ModalSpawnExecutor
    from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus, new_run_id, raise_for_failures
    from aiodiloco.replica import Replica, SyncReplica, join, join_sync
    from aiodiloco.run import (
        Run,
        RunAttempt,
        RunOutcome,
        RunResult,
        RunStatus,
        RunSummary,
        attach,
        launch,
        list_runs,
        reap,
    )
    from aiodiloco.store import FileStore, MemoryStore, S3Store, Store, join_uri, open_store, probe
    from aiodiloco.store.volume.store import VolumeStore
    from aiodiloco.torchft import StoreManager

__all__ = [
    "JSON",
    "AiodilocoError",
    "Algorithm",
    "AllReduceReport",
    "CheckpointError",
    "ChunkError",
    "CollectiveError",
    "Cursor",
    "DiLoCo",
    "EntrypointError",
    "Event",
    "EventWriter",
    "ExecutorError",
    "FailFast",
    "FileStore",
    "HandleError",
    "KeyNotFoundError",
    "LaunchError",
    "LeaseExpiredError",
    "Link",
    "LocalProcessExecutor",
    "MemoryStore",
    "ModalExecutor",
    "ModalSpawnExecutor",
    "NesterovSGD",
    "ObjectStoreAllReduce",
    "OuterOptimizerFactory",
    "Quorum",
    "RankTakenError",
    "Replica",
    "ReplicaFailedError",
    "ReplicaHandle",
    "ReplicaResult",
    "ReplicaStatus",
    "Respawn",
    "RoundGoneError",
    "RoundRefusedError",
    "RoundTimeoutError",
    "Run",
    "RunAttempt",
    "RunConflictError",
    "RunError",
    "RunNotFoundError",
    "RunOutcome",
    "RunResult",
    "RunStatus",
    "RunSummary",
    "S3Store",
    "ServerlessExecutor",
    "Stateful",
    "Store",
    "StoreAccessError",
    "StoreError",
    "StoreManager",
    "StoreUnavailableError",
    "StoreUnsupportedError",
    "SyncDiLoCo",
    "SyncReplica",
    "VolumeStore",
    "WaitAll",
    "WorldSizeError",
    "__version__",
    "attach",
    "follow_events",
    "join",
    "join_sync",
    "join_uri",
    "launch",
    "list_runs",
    "load_checkpoint",
    "new_run_id",
    "open_store",
    "probe",
    "raise_for_failures",
    "read_events",
    "reap",
]

__version__ = "0.1.0"

_HOME = {
    "checkpoint": ("load_checkpoint",),
    "collective": ("AllReduceReport", "Link", "ObjectStoreAllReduce"),
    "collective.plan": ("Algorithm",),
    "diloco": ("DiLoCo", "NesterovSGD", "OuterOptimizerFactory", "Stateful", "SyncDiLoCo"),
    "events": ("Cursor", "Event", "EventWriter", "follow_events", "read_events"),
    "executors": ("FailFast", "LocalProcessExecutor", "Quorum", "Respawn", "ServerlessExecutor", "WaitAll"),
    "executors.modal": ("ModalExecutor", "ModalSpawnExecutor"),
    "records": ("JSON", "ReplicaHandle", "ReplicaResult", "ReplicaStatus", "new_run_id", "raise_for_failures"),
    "replica": ("Replica", "SyncReplica", "join", "join_sync"),
    "store": ("FileStore", "MemoryStore", "S3Store", "Store", "join_uri", "open_store", "probe"),
    "store.volume.store": ("VolumeStore",),
    "torchft": ("StoreManager",),
    "run": (
        "Run",
        "RunAttempt",
        "RunOutcome",
        "RunResult",
        "RunStatus",
        "RunSummary",
        "attach",
        "launch",
        "list_runs",
        "reap",
    ),
}
_EXTRA_OF = {"modal": "modal", "torch": "torch", "safetensors": "torch", "xxhash": "torch"}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name, "errors" if name.endswith("Error") and name in __all__ else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as exc:
        if exc.name in _EXTRA_OF:
            extra = _EXTRA_OF[exc.name]
            raise ImportError(f"aiodiloco.{name} needs {exc.name}: pip install 'aiodiloco[{extra}]'") from exc
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
