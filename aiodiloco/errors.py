"""Every error this library raises on purpose, in one tree.

    AiodilocoError
    ├── StoreError                     the object store
    │   ├── KeyNotFoundError           (FileNotFoundError) no object under this key
    │   ├── StoreAccessError           (PermissionError) missing, unreadable or unwritable
    │   ├── StoreUnavailableError      for the moment: the same request may succeed later
    │   └── StoreUnsupportedError      the store lacks a guarantee the library needs
    ├── ChunkError                     (ValueError) bytes that are not the chunk they should be
    ├── CheckpointError                a checkpoint that is not there, or not whole
    ├── CollectiveError                the all-reduce
    │   ├── RoundTimeoutError          (TimeoutError) a rank's contribution or result did not come in time
    │   │   └── RoundGoneError         the round is over, and what it consisted of is deleted
    │   ├── RoundRefusedError          (ValueError) contributions that cannot be averaged: shapes, dtypes, wire, start
    │   ├── RankTakenError             another process holds this rank
    │   └── WorldSizeError             (ValueError) the run was started with another world size
    ├── RunError                       runs as a whole: launching, attaching, driving
    │   ├── RunConflictError           (ValueError) this run id was launched with other arguments
    │   ├── RunNotFoundError           (LookupError) the store has no run of this name
    │   └── LeaseExpiredError          this replica's driver is gone, so it ended; its exit code is 75
    └── ExecutorError                  launching and collecting
        ├── EntrypointError            (ValueError) not an importable function, or arguments that are not JSON
        ├── HandleError                (ValueError) a handle of another backend, malformed, or of a forgotten run
        ├── UncertainSpawnError        a replica may have started, and its backend did not say so
        ├── LaunchError                a replica could not be started; carries every rank's result
        └── ReplicaFailedError         replicas did not succeed; carries every rank's result

Bad arguments raise `ValueError` or `TypeError` where they are given. Errors that are also a builtin inherit it, so
`except TimeoutError` works without importing this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.records import ReplicaResult

__all__ = [
    "AiodilocoError",
    "CheckpointError",
    "ChunkError",
    "CollectiveError",
    "EntrypointError",
    "ExecutorError",
    "HandleError",
    "KeyNotFoundError",
    "LaunchError",
    "LeaseExpiredError",
    "RankTakenError",
    "ReplicaFailedError",
    "RoundGoneError",
    "RoundRefusedError",
    "RoundTimeoutError",
    "RunConflictError",
    "RunError",
    "RunNotFoundError",
    "StoreAccessError",
    "StoreError",
    "StoreUnavailableError",
    "StoreUnsupportedError",
    "UncertainSpawnError",
    "WorldSizeError",
]


class AiodilocoError(Exception):
    """The root of every error of this library."""


class StoreError(AiodilocoError):
    """The object store could not do what was asked."""


class KeyNotFoundError(StoreError, FileNotFoundError):
    """No object under this key."""


class StoreAccessError(StoreError, PermissionError):
    """The store does not exist, or may not be read or written."""


class StoreUnavailableError(StoreError):
    """The store could not do it for the moment: overloaded, or the connection broke.

    A write may have taken place or not. Stores raise it after retries of their own, if they make any; `ResilientStore`
    repeats the request.
    """


class StoreUnsupportedError(StoreError):
    """The store lacks a guarantee without which runs would lose data."""


class ChunkError(AiodilocoError, ValueError):
    """Bytes that are not the chunk they should be: truncated, corrupted, of another kind."""


class CheckpointError(AiodilocoError):
    """There is no such checkpoint, or an object of it is missing or damaged."""


class CollectiveError(AiodilocoError):
    """An all-reduce could not be carried out."""


class RoundTimeoutError(CollectiveError, TimeoutError):
    """A rank's part of a round did not come in time."""


class RoundGoneError(RoundTimeoutError):
    """A round is over, and its objects are deleted: this rank is too far behind to take it."""


class RoundRefusedError(CollectiveError, ValueError):
    """The contributions to a round cannot be averaged; every rank of the round gets this same error."""


class RankTakenError(CollectiveError):
    """Another process holds this rank of this run."""


class WorldSizeError(CollectiveError, ValueError):
    """The run was started with another world size."""


class RunError(AiodilocoError):
    """A run could not be launched, attached to, or driven."""


class RunConflictError(RunError, ValueError):
    """This run id was launched with other arguments."""


class RunNotFoundError(RunError, LookupError):
    """The store has no run of this name."""


class LeaseExpiredError(RunError):
    """Raised inside a replica whose driver is gone: nobody would end it, so it ends itself.

    Attributes:
        exit_code: What its process exits with: EX_TEMPFAIL, "try again later".
    """

    exit_code = 75


class ExecutorError(AiodilocoError):
    """Replicas could not be launched, watched or ended."""


class EntrypointError(ExecutorError, ValueError):
    """The entrypoint is not an importable function, or its arguments are not JSON."""


class HandleError(ExecutorError, ValueError):
    """A handle this executor cannot use."""


class UncertainSpawnError(ExecutorError):
    """A replica was asked for and the answer is lost: it may have started."""


class _ResultsError(ExecutorError):
    """An error that carries the result of every replica of the group.

    Attributes:
        results: One `ReplicaResult` per rank that was started, in rank order.
    """

    def __init__(self, message: str, results: Sequence[ReplicaResult] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


class LaunchError(_ResultsError):
    """A replica could not be started; those already started were cancelled."""


class ReplicaFailedError(_ResultsError):
    """At least one replica did not succeed. The message ends with the first failure's traceback."""
