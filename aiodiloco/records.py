"""The records that cross processes: statuses, handles and results, as frozen dataclasses with JSON both ways."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

from aiodiloco.errors import HandleError, ReplicaFailedError

__all__ = [
    "JSON",
    "ReplicaHandle",
    "ReplicaResult",
    "ReplicaStatus",
    "check_run_id",
    "new_run_id",
    "raise_for_failures",
]

JSON: TypeAlias = Mapping[str, "JSON"] | Sequence["JSON"] | str | int | float | bool | None

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_run_id(run_id: str) -> str:
    """Return `run_id`, or raise ValueError if it could not be a key component: `[a-z0-9][a-z0-9-]{0,62}`."""
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run_id {run_id!r} is not valid: use 1 to 63 lower-case letters, digits and dashes, starting with no dash"
        )
    return run_id


def new_run_id() -> str:
    """Return a fresh run id that sorts by the second it was made in, e.g. `run-20260131-235959-4f9c2a`."""
    return f"run-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


class ReplicaStatus(StrEnum):
    """Where a replica is in its life. Members equal their lower-case names."""

    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """True once the replica has ended and will never change status again."""
        return self in (ReplicaStatus.succeeded, ReplicaStatus.failed, ReplicaStatus.cancelled)


@dataclasses.dataclass(frozen=True)
class ReplicaHandle:
    """Names one launched replica; any process that holds it can poll, cancel, stream and collect.

    Attributes:
        rank: 0 .. n_replicas - 1.
        backend_name: The executor that launched it, e.g. `"local"`.
        run_id: Shared by all replicas of one launch.
        metadata: JSON values: `call_id`, `spawn_ts` (Unix seconds, for people to read), `incarnation`, and what else
            the backend needs to find the replica again. Never credentials.
    """

    rank: int
    backend_name: str
    run_id: str
    metadata: Mapping[str, JSON] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise ValueError(f"rank must be an int >= 0, not {self.rank!r}")
        if not isinstance(self.backend_name, str) or not isinstance(self.metadata, Mapping):
            raise TypeError("backend_name must be a string and metadata a mapping")
        check_run_id(self.run_id)

    @property
    def call_id(self) -> str | None:
        """The backend's own name for this replica, or None if it has none."""
        value = self.metadata.get("call_id")
        return None if value is None else str(value)

    def to_json(self) -> str:
        """Return the handle as one line of JSON."""
        return json.dumps({**dataclasses.asdict(self), "metadata": dict(self.metadata)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ReplicaHandle:
        """Return the handle that `to_json` wrote. Raises HandleError when `text` is not one."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as exc:
            raise HandleError(
                f"not a replica handle: {text[:200]!r} ({exc}); use ReplicaHandle.to_json's text"
            ) from exc


@dataclasses.dataclass(frozen=True)
class ReplicaResult:
    """How one replica ended, or where it stood when it was last looked at.

    Attributes:
        rank: 0 .. n_replicas - 1.
        status: `cancelled` only once the backend confirmed it; `running` when a deadline passed and it had not.
        exit_code: Process exit code, negative for a signal; None where the backend has none or it is still running.
        error: One line for people: exception type and message, or why it was ended. None on success.
        result: What the entrypoint returned, a JSON value.
        call_id: The backend's own name for the replica.
        traceback: The replica's traceback as text, where there is one.
        preempted: It failed because something outside of it ended it: its container or machine was lost, it was
            killed (also for want of memory), or it ended itself because its driver was gone.
    """

    rank: int
    status: ReplicaStatus
    exit_code: int | None = None
    error: str | None = None
    result: JSON = None
    call_id: str | None = None
    traceback: str | None = None
    preempted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON values; `status` as a plain string."""
        return {**dataclasses.asdict(self), "status": self.status.value}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ReplicaResult:
        """Return the result that `to_dict` wrote."""
        return cls(**{**fields, "status": ReplicaStatus(fields["status"])})


def raise_for_failures(results: Sequence[ReplicaResult]) -> None:
    """Raise ReplicaFailedError, carrying all `results`, unless every replica succeeded.

    The message names each replica that did not succeed; the traceback shown is that of the first that failed by
    itself, not of a sibling that was cancelled because of it.
    """
    bad = [r for r in results if r.status is not ReplicaStatus.succeeded]
    if not bad:
        return
    lines = [f"{len(bad)} of {len(results)} replicas did not succeed:"]
    lines += [f"  rank {r.rank} {r.status}: {r.error or 'no error given'}" for r in bad]
    cause = next((r for r in bad if r.status is ReplicaStatus.failed and r.traceback), None)
    if cause is not None and cause.traceback is not None:
        lines += [f"traceback of rank {cause.rank}:", cause.traceback.rstrip()]
    raise ReplicaFailedError("\n".join(lines), results)
