"""A backend whose replicas are entries in a dict and whose calls fail, hang or ignore their cancellation as told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiodiloco.executors import SpawnRequest


@dataclasses.dataclass
class Replica:
    ended: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    status: ReplicaStatus = ReplicaStatus.running
    cancels: int = 0

    def end(self, status: ReplicaStatus) -> None:
        if not self.status.is_final:
            self.status = status
            self.ended.set()


async def nothing(rank: int) -> None:
    del rank


async def hang(rank: int) -> None:
    del rank
    await anyio.sleep_forever()


async def hang_deaf(rank: int) -> None:
    """Hang for a second whatever is done against it."""
    del rank
    with anyio.CancelScope(shield=True):
        event = anyio.Event()
        for _ in range(100):
            try:
                with anyio.move_on_after(0.01):
                    await event.wait()
            except BaseException:  # what is tested
                continue


class ScriptedBackend:
    """A `Backend`. Each hook is awaited with the rank before the call does its work."""

    name = "scripted"
    supports_inter_replica_network = False
    default_timeout_s = 100.0

    def __init__(self, *, spawn_bound_s: float = 5.0, cancel_bound_s: float = 1.0) -> None:
        self.spawn_bound_s = spawn_bound_s
        self.cancel_bound_s = cancel_bound_s
        self.replicas: dict[int, Replica] = {}
        self.in_flight = 0
        self.most_in_flight = 0
        self.before_launch: Callable[[int], Awaitable[None]] = nothing
        self.before_spawn: Callable[[int], Awaitable[None]] = nothing
        self.after_spawn: Callable[[int], Awaitable[None]] = nothing
        self.before_wait: Callable[[int], Awaitable[None]] = nothing
        self.before_cancel: Callable[[int], Awaitable[None]] = nothing

    def check(self, request: SpawnRequest) -> None:
        del request

    async def prepare(self, request: SpawnRequest) -> None:
        await self.before_launch(request.n_replicas)

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.before_spawn(request.rank)
            self.replicas[request.rank] = Replica()
            await self.after_spawn(request.rank)
        finally:
            self.in_flight -= 1
        return self.handle(request.rank)

    def handle(self, rank: int, **metadata: float) -> ReplicaHandle:
        return ReplicaHandle(rank, self.name, "run-1", {"call_id": f"call-{rank}", "incarnation": 0, **metadata})

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        await self.before_wait(handle.rank)
        replica = self.replicas[handle.rank]
        await replica.ended.wait()
        error = None if replica.status is ReplicaStatus.succeeded else f"{replica.status} by script"
        return ReplicaResult(handle.rank, replica.status, error=error, call_id=handle.call_id)

    async def cancel(self, handle: ReplicaHandle) -> None:
        self.replicas[handle.rank].cancels += 1
        await self.before_cancel(handle.rank)
        self.replicas[handle.rank].end(ReplicaStatus.cancelled)

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        await self.before_wait(handle.rank)
        return self.replicas[handle.rank].status

    async def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        del handle, n_lines, follow
        yield "a line"
