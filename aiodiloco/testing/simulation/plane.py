"""A simulated control plane: spawns, ends and reruns processes for whoever asks, and loses replies."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import ExecutorError, LeaseExpiredError, UncertainSpawnError
from aiodiloco.executors.entrypoint import exit_code_of
from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus
from aiodiloco.testing.simulation.gate import deliver
from aiodiloco.testing.simulation.process import running_process
from aiodiloco.testing.simulation.training import train

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiodiloco.executors import SpawnRequest
    from aiodiloco.testing.simulation.process import Process
    from aiodiloco.testing.simulation.schedule import PlaneFaults
    from aiodiloco.testing.simulation.world import World

__all__ = ["Act", "Call", "Plane", "PlaneBackend"]

_GRACE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Act:
    """Something that a driver asked for: when, who, `spawn` or `cancel`, of which call."""

    at_s: float
    process: str
    what: str
    call_id: str


class Call:
    """One replica as the control plane sees it: perhaps several processes, one after the other or at once.

    Attributes:
        rank, incarnation: As asked for.
        processes: All there have been.
        row: How it ended; None while it has not.
    """

    def __init__(self, plane: Plane, request: SpawnRequest, call_id: str) -> None:
        self.rank = request.rank
        self.incarnation = request.incarnation
        self.call_id = call_id
        self.processes: list[Process] = []
        self.row: ReplicaResult | None = None
        self.ended = asyncio.Event()
        self._plane = plane
        self._request = request
        self._was_cancelled = False
        self._num_to_come = 0

    def start(self) -> None:
        """Start a process of it: the first, a rerun or a duplicate."""
        self._num_to_come = max(0, self._num_to_come - 1)
        if self.row is None and not self._was_cancelled:
            name = f"{self.call_id}#{len(self.processes)}"
            self.processes.append(self._plane.start_replica(name, self._request, self._note_end))

    def start_again(self, after_s: float) -> None:
        """Start another process of it some time later, whatever becomes of the one before."""
        self._num_to_come += 1
        self._plane.later(after_s, self.start)

    def cancel(self) -> None:
        """Ask its processes to end, and kill them after the grace period."""
        if self.row is None and not self._was_cancelled:
            self._was_cancelled = True
            for process in self.processes:
                process.terminate()
            self._plane.later(_GRACE_S, self._kill)

    def _kill(self) -> None:
        for process in self.processes:
            if process.lives:
                process.kill()

    def _note_end(self, process: Process) -> None:
        if self.row is not None:
            return
        row = self._row_of(process)
        is_over = not any(process.lives for process in self.processes) and (
            self._was_cancelled or not self._num_to_come
        )
        if is_over or row.status is ReplicaStatus.succeeded:
            self.row = row
            self._kill()
            self.ended.set()

    def _row_of(self, process: Process) -> ReplicaResult:
        end = process.end
        assert end is not None
        if end.how == "returned":
            return ReplicaResult(self.rank, ReplicaStatus.succeeded, exit_code=0, call_id=self.call_id)
        if self._was_cancelled:
            return ReplicaResult(self.rank, ReplicaStatus.cancelled, error="cancelled", call_id=self.call_id)
        exit_code = end.exit_code if end.error is None else exit_code_of(end.error)
        error = f"{end.how}: {end.error!r}"
        is_preempted = end.how == "killed" or exit_code == LeaseExpiredError.exit_code
        return ReplicaResult(self.rank, ReplicaStatus.failed, error=error, call_id=self.call_id, preempted=is_preempted)


class Plane:
    """All calls of a run, and what was asked.

    Args:
        world: Where processes are.
        faults: What goes wrong.
        later: Has something called after so many seconds.

    Attributes:
        calls: By call id.
        spawned: How often each (rank, incarnation) was started.
        acts: What drivers asked for that arrived.
        injected: How often what went wrong.
        joined: Process -> when it had a place in the run.
    """

    def __init__(
        self, world: World, faults: PlaneFaults, later: Callable[[float, Callable[[], object]], object]
    ) -> None:
        self.calls: dict[str, Call] = {}
        self.spawned: Counter[tuple[int, int]] = Counter()
        self.acts: list[Act] = []
        self.injected: Counter[str] = Counter()
        self.joined: dict[str, float] = {}
        self.later = later
        self._world = world
        self._faults = faults
        self._num_asked = 0

    def newest(self, rank: int) -> Call | None:
        """Return the latest call of a rank that has not ended."""
        return next((call for call in reversed(self.calls.values()) if call.rank == rank and call.row is None), None)

    def start_replica(self, name: str, request: SpawnRequest, on_end: Callable[[Process], object]) -> Process:
        """Start a process that trains."""
        uri = str(request.entrypoint_args["rendezvous_uri"])
        world = self._world

        async def main(process: Process) -> None:
            await train(
                world.notes,
                world.schedule,
                uri,
                rank=request.rank,
                name=process.name,
                incarnation=request.incarnation,
                on_joined=lambda: self.joined.setdefault(name, anyio.current_time()),
            )

        return world.start(name, main, on_end=on_end)

    async def spawn(self, request: SpawnRequest, by: str) -> ReplicaHandle:
        """Start a replica, for the process `by`."""
        fate = await self._receive("spawn")
        if self._happens("refused", fate):
            raise ExecutorError("the control plane refuses to start it, as injected")
        number = self.spawned[request.rank, request.incarnation]
        self.spawned[request.rank, request.incarnation] += 1
        call_id = f"{request.rank}-{request.incarnation}" + (f"+{number}" if number else "")
        call = self.calls[call_id] = Call(self, request, call_id)
        self.acts.append(Act(anyio.current_time(), by, "spawn", call_id))
        call.start()
        if self._happens("lost_spawn", fate):
            raise UncertainSpawnError("the reply was lost, as injected")
        metadata: dict[str, JSON] = {"call_id": call_id, "incarnation": request.incarnation}
        return ReplicaHandle(request.rank, PlaneBackend.name, request.run_id, metadata)

    async def cancel(self, call_id: str, by: str) -> None:
        """End a replica, for the process `by`."""
        fate = await self._receive("cancel")
        if self._happens("lost_cancel", fate):
            raise ExecutorError("the order to end it was lost, as injected")
        self.acts.append(Act(anyio.current_time(), by, "cancel", call_id))
        self.calls[call_id].cancel()

    async def _receive(self, operation: str) -> random.Random:
        self._num_asked += 1
        seed = f"{self._world.schedule.seed}/{operation}/{self._num_asked}"
        fate = random.Random(seed)  # noqa: S311 - a simulation must repeat
        await anyio.sleep(self._faults.latency_s * fate.uniform(0.5, 1.5))
        return fate

    def _happens(self, fault: str, fate: random.Random) -> bool:
        rate: float = getattr(self._faults, fault)
        happens = fate.random() < rate
        self.injected[fault] += happens
        return happens


class PlaneBackend:
    """A `Backend`: what one driver process has of the control plane."""

    name = "simulated"
    supports_inter_replica_network = False
    default_timeout_s = 24 * 3600.0
    spawn_bound_s = 60.0
    cancel_bound_s = _GRACE_S + 8.0

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def check(self, request: SpawnRequest) -> None:
        """Nothing: every request is fine."""

    async def prepare(self, request: SpawnRequest) -> None:
        """Nothing to build."""

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        """Start the replica; the request is carried out even if its driver dies meanwhile."""
        process = running_process()
        await process.reach_out()
        handle = await deliver(lambda: self._plane.spawn(request, process.name))
        await process.reach_out()
        return handle

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended."""
        process = running_process()
        call = self._plane.calls[str(handle.call_id)]
        await call.ended.wait()
        await process.reach_out()
        assert call.row is not None
        return call.row

    async def cancel(self, handle: ReplicaHandle) -> None:
        """Ask for its end."""
        process = running_process()
        await process.reach_out()
        await deliver(lambda: self._plane.cancel(str(handle.call_id), process.name))

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return where the replica is in its life."""
        await running_process().reach_out()
        row = self._plane.calls[str(handle.call_id)].row
        return ReplicaStatus.running if row is None else row.status

    async def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        """Nothing: simulated replicas do not write."""
        del handle, n_lines, follow
        return
        yield
