"""A backend whose replicas are entries in a dict that several executors share, as processes share a cloud."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiodiloco.executors import SpawnRequest


@dataclasses.dataclass
class Replica:
    row: ReplicaResult | None = None
    ended: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    cancels: int = 0


class World:
    """What exists, whoever started it. `spawned` counts how often each (rank, incarnation) was."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.spawned: Counter[str] = Counter()
        self.cancels_take_effect = True

    @property
    def living(self) -> list[str]:
        return sorted(call_id for call_id, replica in self.replicas.items() if replica.row is None)

    def end(self, call_id: str, status: str = "succeeded", *, preempted: bool = False) -> None:
        replica = self.replicas[call_id]
        if replica.row is None:
            error = {"succeeded": None, "cancelled": "cancelled"}.get(status, f"{status} by script")
            rank = int(call_id.split("-", maxsplit=1)[0])
            replica.row = ReplicaResult(rank, ReplicaStatus(status), error=error, call_id=call_id, preempted=preempted)
            replica.ended.set()

    def end_all(self, status: str = "succeeded") -> None:
        for call_id in self.living:
            self.end(call_id, status)

    async def wait_for(self, *call_ids: str) -> None:
        with anyio.fail_after(20):
            while not set(call_ids) <= self.replicas.keys():
                await anyio.sleep(0.005)


async def nothing(_: str) -> None:
    return


class WorldBackend:
    """A `Backend`. Hooks are awaited with the call id before a call does its work."""

    name = "scripted"
    supports_inter_replica_network = False
    default_timeout_s = 100.0
    spawn_bound_s = 5.0
    cancel_bound_s = 0.5

    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: list[SpawnRequest] = []
        self.before_prepare: Callable[[str], Awaitable[None]] = nothing
        self.before_spawn: Callable[[str], Awaitable[None]] = nothing
        self.after_spawn: Callable[[str], Awaitable[None]] = nothing

    def check(self, request: SpawnRequest) -> None:
        del request

    async def prepare(self, request: SpawnRequest) -> None:
        await self.before_prepare(request.run_id)

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        self.requests.append(request)
        call_id = f"{request.rank}-{request.incarnation}"
        await self.before_spawn(call_id)
        self.world.spawned[call_id] += 1
        self.world.replicas[call_id] = Replica()
        await self.after_spawn(call_id)
        metadata = {"call_id": call_id, "incarnation": request.incarnation}
        return ReplicaHandle(request.rank, self.name, request.run_id, metadata)

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        replica = self.world.replicas[str(handle.call_id)]
        await replica.ended.wait()
        assert replica.row is not None
        return replica.row

    async def cancel(self, handle: ReplicaHandle) -> None:
        await anyio.lowlevel.checkpoint()
        self.world.replicas[str(handle.call_id)].cancels += 1
        if self.world.cancels_take_effect:
            self.world.end(str(handle.call_id), "cancelled")

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        row = self.world.replicas[str(handle.call_id)].row
        return ReplicaStatus.running if row is None else row.status

    async def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        del handle, n_lines, follow
        yield "a line"
