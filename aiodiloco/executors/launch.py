"""Start all replicas of a group, or none."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from aiodiloco.errors import EntrypointError, LaunchError, UncertainSpawnError
from aiodiloco.executors.calls import Bell, Calls, Job
from aiodiloco.executors.entrypoint import (
    IMPORTING_MAIN,
    check_args,
    check_signature,
    name_of,
    resolve,
    select_taken,
)
from aiodiloco.executors.group import end_replicas
from aiodiloco.executors.port import Backend, SpawnRequest
from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus, check_run_id, new_run_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    from aiodiloco.executors.serverless import Entrypoint

    OnSpawned: TypeAlias = Callable[[ReplicaHandle], Awaitable[None]]
    MayUndo: TypeAlias = Callable[[], Awaitable[bool]]

__all__ = ["check_timeout", "launch", "plan_launch"]

_SPAWNS_IN_FLIGHT = 32  # 64 replicas start within two round trips to a control plane far away
_LATE_FACTOR = 10  # a spawn that takes so many times its bound will not yield an id any more
_UNDO_BOUND_S = 10.0


def check_timeout(timeout: float | None, *, name: str = "timeout") -> float | None:
    """Return `timeout`, or raise ValueError unless it is None or a finite number of seconds > 0."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ValueError(f"{name} must be a number of seconds, not {timeout!r}")  # noqa: TRY004 - one error for bad arguments
    if not 0 < timeout < math.inf:
        raise ValueError(f"{name} must be more than 0 and finite, not {timeout!r}; use poll() to look without waiting")
    return float(timeout)


async def plan_launch(
    backend: Backend,
    n_replicas: int,
    entrypoint: Entrypoint | None,
    entrypoint_args: Mapping[str, JSON] | None,
    *,
    gpu: str | None,
    timeout: float | None,
    run_id: str | None,
    offered: Mapping[str, JSON] | None = None,
) -> list[SpawnRequest]:
    """Return one request per rank, or raise ValueError or EntrypointError. Starts nothing.

    `offered` are further arguments, for entrypoints that have parameters of these names.
    """
    if isinstance(n_replicas, bool) or not isinstance(n_replicas, int) or n_replicas < 1:
        raise ValueError(f"n_replicas must be an int >= 1, not {n_replicas!r}")
    if IMPORTING_MAIN in os.environ:
        raise EntrypointError(
            "this script launches replicas while a replica imports it; put that under `if __name__ == '__main__':`"
        )
    args = await anyio.to_thread.run_sync(check_args, {} if entrypoint_args is None else entrypoint_args)
    name, args = await _checked_name(entrypoint, args, offered or {})
    first = SpawnRequest(
        rank=0,
        n_replicas=n_replicas,
        run_id=new_run_id() if run_id is None else check_run_id(run_id),
        launch_id=secrets.token_hex(8),
        entrypoint=name,
        entrypoint_args=args,
        gpu=gpu,
        timeout_s=check_timeout(timeout) or backend.default_timeout_s,
    )
    backend.check(first)
    return [dataclasses.replace(first, rank=rank) for rank in range(n_replicas)]


async def _checked_name(
    entrypoint: Entrypoint | None, args: Mapping[str, JSON], offered: Mapping[str, JSON]
) -> tuple[str | None, Mapping[str, JSON]]:
    if entrypoint is None:
        return None, {**offered, **args}
    if isinstance(entrypoint, str):
        name, function = entrypoint, await anyio.to_thread.run_sync(resolve, entrypoint, abandon_on_cancel=True)
    else:
        name, function = name_of(entrypoint), entrypoint
    args = {**select_taken(function, offered), **args}
    check_signature(name, function, args)
    return name, args


async def launch(
    calls: Calls,
    requests: Sequence[SpawnRequest],
    *,
    on_spawned: OnSpawned | None = None,
    may_undo: MayUndo | None = None,
) -> list[ReplicaHandle]:
    """Return the handles of all replicas, in the order of `requests`.

    When one cannot be started, or the caller is cancelled, the spawns under way are given time to yield their ids,
    everything that started is cancelled, and only then the error or the cancellation goes on.

    Args:
        calls: To the backend.
        requests: One per replica.
        on_spawned: Awaited with each handle as soon as there is one, in a task that nobody cancels; a replica for
            which it fails is cancelled, and could not be started.
        may_undo: Awaited before those that started are cancelled; if it says no, they are somebody else's by now.

    Raises:
        LaunchError: a replica could not be started.
    """
    spawns = _Spawns(calls, requests, on_spawned, may_undo)
    try:
        await spawns.run()
    except BaseException:
        await calls.finish(spawns.undo("the launch was cancelled"))
        raise
    if spawns.failed is None:
        return spawns.handles()
    rows = await calls.finish(spawns.undo("a sibling could not be started"))
    rank, failure = spawns.failed
    message = f"rank {rank} could not be started: {failure}; the replicas that had started were cancelled"
    raise LaunchError(message, rows) from failure


class _Spawns:
    """The spawns of one launch: a bounded number in flight, none ever forgotten.

    A spawn is never cancelled, for then nobody would learn the id of a replica that starts all the same. One that
    takes too long fails the launch, and ends its replica itself should it start after all.

    Attributes:
        failed: The lowest rank that could not be started, and why; None while there is none.
    """

    def __init__(
        self,
        calls: Calls,
        requests: Sequence[SpawnRequest],
        on_spawned: OnSpawned | None,
        may_undo: MayUndo | None,
    ) -> None:
        self.failed: tuple[int, Exception] | None = None
        self._on_spawned = on_spawned
        self._may_undo = may_undo
        self._calls = calls
        self._requests = list(requests)
        self._jobs: list[Job[ReplicaHandle]] = []
        self._latest: dict[int, float] = {}  # position -> until when this spawn, which is under way, has time
        self._bell = Bell()
        self._wanted = True

    async def run(self) -> None:
        """Return when all have started, or one has failed."""
        while self.failed is None and (len(self._jobs) < len(self._requests) or self._latest):
            self._start_some()
            await self._bell.wait_until(min(self._latest.values(), default=float("inf")))
            self._note_late()

    def handles(self) -> list[ReplicaHandle]:
        """Return the handles of those that started, in order."""
        return [job.value() for job in self._jobs if job.has_ended and job.error() is None]

    async def undo(self, reason: str) -> list[ReplicaResult]:
        """Let the spawns under way yield their ids, cancel all that started, and return their rows. Bounded."""
        deadline = time.monotonic() + _UNDO_BOUND_S
        while in_time := [latest for latest in self._latest.values() if latest > time.monotonic()]:
            if not await self._bell.wait_until(min(deadline, *in_time)) and time.monotonic() >= deadline:
                break
        self._wanted = False
        self._note_late()
        nameless = [
            ReplicaResult(request.rank, ReplicaStatus.pending, error=error)
            for request, job in zip(self._requests, self._jobs, strict=False)
            if (error := _why_nameless(job, reason)) is not None
        ]
        if self._may_undo is not None and not await self._may_undo():
            return nameless
        within_s = min(_UNDO_BOUND_S, self._calls.backend.cancel_bound_s)
        rows = await end_replicas(self._calls, self.handles(), reason=reason, within_s=within_s)
        return sorted(rows + nameless, key=lambda row: row.rank)

    def _start_some(self) -> None:
        while len(self._jobs) < len(self._requests) and len(self._latest) < _SPAWNS_IN_FLIGHT:
            index = len(self._jobs)
            self._latest[index] = time.monotonic() + self._calls.backend.spawn_bound_s
            spawn = self._spawn(self._requests[index])
            self._jobs.append(self._calls.start(spawn, on_end=partial(self._note_end, index)))

    def _note_end(self, index: int) -> None:
        del self._latest[index]
        if (failure := self._jobs[index].error()) is not None:
            self._note_failure(index, failure)
        self._bell.ring()

    def _note_late(self) -> None:
        now, bound_s = time.monotonic(), self._calls.backend.spawn_bound_s
        for index, latest in self._latest.items():
            if now >= latest:
                self._note_failure(index, TimeoutError(f"no answer within {bound_s:g} s"))

    def _note_failure(self, index: int, failure: Exception) -> None:
        rank = self._requests[index].rank
        if self.failed is None or rank < self.failed[0]:
            self.failed = rank, failure

    async def _spawn(self, request: SpawnRequest) -> ReplicaHandle:
        backend = self._calls.backend
        with anyio.fail_after(_LATE_FACTOR * backend.spawn_bound_s):
            handle = await backend.spawn(request)
        try:
            if self._on_spawned is not None:
                await self._on_spawned(handle)
        except BaseException:
            await self._end(handle)
            raise
        if not self._wanted:
            await self._end(handle)
        return handle

    async def _end(self, handle: ReplicaHandle) -> None:
        backend = self._calls.backend
        with anyio.fail_after(backend.cancel_bound_s):
            await backend.cancel(handle)


def _why_nameless(job: Job[ReplicaHandle], reason: str) -> str | None:
    """Return why there may be a replica that nobody has the handle of; None if there is none."""
    if not job.has_ended:
        return f"its spawn has not answered; {reason}"
    return str(failure) if isinstance(failure := job.error(), UncertainSpawnError) else None
