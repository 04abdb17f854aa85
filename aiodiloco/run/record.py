"""What was asked of a run, and what came of it: `run.json`, `cancel.json` and `result.json`, each written once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aiodiloco.errors import KeyNotFoundError, RunConflictError, StoreError
from aiodiloco.executors.policy import RunPolicy, policy_from_dict, policy_to_dict
from aiodiloco.executors.port import SpawnRequest
from aiodiloco.lease import LeaseTerms
from aiodiloco.records import JSON, ReplicaResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from aiodiloco.store import Store

    T = TypeVar("T")

__all__ = [
    "RECORD",
    "RESULT",
    "RunAttempt",
    "RunOutcome",
    "RunRecord",
    "RunResult",
    "read_cancel",
    "read_record",
    "read_result",
    "write_cancel",
    "write_record",
    "write_result",
]

RECORD = "run.json"
CANCEL = "cancel.json"
RESULT = "result.json"

_NUM_GPUS = re.compile(r":(\d+)$")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What was asked for: enough for any process to drive the run on.

    Attributes:
        run_id, n_replicas, entrypoint, entrypoint_args, gpu, launch_id: As in `SpawnRequest`. The arguments include
            those that `launch` added.
        backend_name: Which executor the run needs.
        replica_timeout_s: Bound on each replica, by the backend.
        timeout_s: Bound on the run, from its launch on.
        policy: What to do when replicas end.
        terms: How its drivers beat.
        binds_replicas: Whether replicas end when the driver is gone.
        max_gpu_seconds: Budget; None for none.
    """

    run_id: str
    n_replicas: int
    backend_name: str
    entrypoint: str | None
    entrypoint_args: Mapping[str, JSON]
    gpu: str | None
    replica_timeout_s: float
    timeout_s: float
    policy: RunPolicy
    terms: LeaseTerms
    binds_replicas: bool
    max_gpu_seconds: float | None
    launch_id: str

    @property
    def gpus_per_replica(self) -> int:
        """What a second of a replica costs: `gpu="H100:8"` is eight, anything else one."""
        match = _NUM_GPUS.search(self.gpu or "")
        return int(match[1]) if match else 1

    def request(self, rank: int, incarnation: int) -> SpawnRequest:
        """Return what to ask of the backend to start this rank."""
        args = dict(self.entrypoint_args)
        if "incarnation" in args:
            args["incarnation"] = incarnation
        return SpawnRequest(
            rank=rank,
            n_replicas=self.n_replicas,
            run_id=self.run_id,
            launch_id=self.launch_id,
            entrypoint=self.entrypoint,
            entrypoint_args=args,
            gpu=self.gpu,
            timeout_s=self.replica_timeout_s,
            incarnation=incarnation,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lease = {**dataclasses.asdict(fields.pop("terms")), "binds_replicas": fields.pop("binds_replicas")}
        args = dict(self.entrypoint_args)
        return {"version": 1, **fields, "entrypoint_args": args, "policy": policy_to_dict(self.policy), "lease": lease}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RunRecord:
        """Return what `to_dict` wrote. Raises ValueError, TypeError or KeyError if that is not it."""
        fields = dict(fields)
        lease = fields.pop("lease")
        fields["terms"] = LeaseTerms(lease["ttl_s"], lease["beat_s"])
        fields["binds_replicas"] = lease["binds_replicas"]
        fields["policy"] = policy_from_dict(fields["policy"])
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    def check_same(self, other: RunRecord) -> None:
        """Raise RunConflictError, naming what differs, unless `other` asks for the same."""
        mine, theirs = self.to_dict(), other.to_dict()
        differing = sorted(name for name in mine if name != "launch_id" and mine[name] != theirs[name])
        if differing:
            listed = "; ".join(_explain(name, mine[name], theirs[name]) for name in differing)
            raise RunConflictError(
                f"run {self.run_id!r} was launched with other arguments ({listed}); launch with the same ones to "
                "attach to it, or under another run_id"
            )


def _explain(name: str, before: object, now: object) -> str:
    """Say what differs; of the entrypoint's arguments only their names, for an error may be shown to anyone."""
    if isinstance(before, Mapping) and isinstance(now, Mapping) and name == "entrypoint_args":
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return f"{name}: {', '.join(keys)}"
    return f"{name}: {before!r} before, {now!r} now"


class RunOutcome(StrEnum):
    """How a run ended."""

    succeeded = "succeeded"  # as its policy asks: all replicas, or the quorum
    failed = "failed"
    cancelled = "cancelled"  # by cancel(), the deadline, the budget, or reap


@dataclasses.dataclass(frozen=True)
class RunAttempt:
    """One process of one rank, and how it ended.

    Attributes:
        incarnation: 0 for the first process of its rank.
        row: How it ended.
        seconds: How long it ran, as far as drivers saw it.
    """

    incarnation: int
    row: ReplicaResult
    seconds: float


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        run_id: Which one.
        outcome: Whether it did what its policy asks for.
        reason: Why it ended, for people.
        rows: One per rank, in rank order: how its latest process ended.
        attempts: Every process that was started, by rank and incarnation.
        elapsed_s: Seconds from its launch to its end.
        spent_gpu_s: GPU seconds its replicas ran.
    """

    run_id: str
    outcome: RunOutcome
    reason: str
    rows: tuple[ReplicaResult, ...]
    attempts: tuple[RunAttempt, ...]
    elapsed_s: float
    spent_gpu_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        rows = [row.to_dict() for row in self.rows]
        attempts = [
            {"incarnation": attempt.incarnation, "seconds": attempt.seconds, "row": attempt.row.to_dict()}
            for attempt in self.attempts
        ]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"version": 1, **fields, "outcome": self.outcome.value, "rows": rows, "attempts": attempts}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RunResult:
        """Return what `to_dict` wrote. Raises ValueError, TypeError or KeyError if that is not it."""
        fields = {field.name: fields[field.name] for field in dataclasses.fields(cls)}
        fields["outcome"] = RunOutcome(fields["outcome"])
        fields["rows"] = tuple(ReplicaResult.from_dict(row) for row in fields["rows"])
        fields["attempts"] = tuple(
            RunAttempt(one["incarnation"], ReplicaResult.from_dict(one["row"]), one["seconds"])
            for one in fields["attempts"]
        )
        return cls(**fields)


async def read_record(store: Store) -> RunRecord | None:
    """Return what was asked of the run under this prefix, or None if there is none.

    Raises:
        StoreError: there is something else.
    """
    return await _read(store, RECORD, RunRecord.from_dict)


async def write_record(store: Store, record: RunRecord) -> RunRecord:
    """Write the record unless there is one; return the one that counts."""
    if await store.put_if_absent(RECORD, json.dumps(record.to_dict()).encode()):
        return record
    found = await read_record(store)
    if found is None:
        raise StoreError(f"{store.uri}/{RECORD} exists and cannot be read; is something deleting this run?")
    return found


async def read_cancel(store: Store) -> str | None:
    """Return why somebody wants the run ended, or None if nobody does."""
    return await _read(store, CANCEL, lambda fields: str(fields["reason"]))


async def write_cancel(store: Store, reason: str) -> None:
    """Leave word that the run is to be ended, for whoever drives it now or later."""
    await store.put_if_absent(CANCEL, json.dumps({"reason": reason}).encode())


async def read_result(store: Store) -> RunResult | None:
    """Return what came of the run, or None while it goes on."""
    return await _read(store, RESULT, RunResult.from_dict)


async def write_result(store: Store, result: RunResult) -> RunResult:
    """Write the result unless there is one; return the one that counts."""
    if await store.put_if_absent(RESULT, json.dumps(result.to_dict()).encode()):
        return result
    return await read_result(store) or result


async def _read(store: Store, key: str, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    try:
        data = bytes(await store.get(key))
    except KeyNotFoundError:
        return None
    try:
        return parse(json.loads(data))
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise StoreError(
            f"{store.uri}/{key} holds {data[:80]!r}, which aiodiloco.launch did not write ({type(exc).__name__}: "
            f"{exc}): a run whose replicas were started by hand, or by another version?"
        ) from exc
