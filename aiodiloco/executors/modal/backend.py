"""What the core asks of a backend, for Modal function calls."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import modal
import modal.exception

from aiodiloco.errors import ExecutorError, UncertainSpawnError
from aiodiloco.executors.calls import Calls
from aiodiloco.executors.modal.connections import Kind, connections_of
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.logs import Logs
from aiodiloco.executors.modal.outcome import Asked, is_transient
from aiodiloco.executors.modal.pauses import Pauses
from aiodiloco.executors.modal.requests import NoAnswerError
from aiodiloco.executors.modal.target import OWN_TIMEOUT_S, Target
from aiodiloco.executors.modal.watcher import StillRunningError, Watcher, call_id_of
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.executors.port import SpawnRequest
    from aiodiloco.records import JSON

__all__ = ["ModalBackend"]

_ANSWER_S = 5.0  # an answer that takes longer is lost; asking again is harmless
_KILL_S = 12.0  # between asking Modal to kill containers and their end
_LATEST_RETRY_S = 45.0
_UNCERTAIN = "if the replica has started all the same, its own timeout or `modal app stop` ends it"


class ModalBackend:
    """Replicas as Modal function calls; a `Backend`."""

    name = "modal"
    supports_inter_replica_network = False
    default_timeout_s = OWN_TIMEOUT_S
    spawn_bound_s = 60.0

    def __init__(self, target: Target, *, client: modal.Client | None, grace_s: float) -> None:
        self.cancel_bound_s = grace_s + _KILL_S
        self._target = target
        self._client = client
        self._grace_s = grace_s
        self._connections = connections_of(client)
        self._watcher = Watcher(self._connections)
        self._logs = Logs(Calls(self), client)
        self._lock = threading.Lock()
        self._launches: dict[str, str] = {}
        self._timeouts: weakref.WeakKeyDictionary[modal.Function[..., Any, Any], float] = weakref.WeakKeyDictionary()

    def check(self, request: SpawnRequest) -> None:
        """Refuse what Modal or the function cannot do."""
        self._target.check(request)

    async def prepare(self, request: SpawnRequest) -> None:
        """See to it that the function is on Modal, before the first spawn of a launch."""
        require_asyncio()
        try:
            await self._target.prepare(request)
        except Exception as exc:
            raise explain(exc, "preparing the launch") from exc

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        """Call the function; again, with pauses, as long as Modal says that it takes no calls now."""
        self._note_launch(request)
        replica = self._target.replica(request)
        call = await _spawn(replica.function, dict(replica.kwargs))
        timeout_s = request.timeout_s
        if timeout_s == OWN_TIMEOUT_S:
            timeout_s = await self._timeout_of(replica.function)
        metadata: dict[str, JSON] = {
            "call_id": call.object_id,
            "spawn_ts": time.time(),
            "incarnation": request.incarnation,
            "timeout_s": timeout_s,
            "function_id": replica.function.object_id,
        }
        return ReplicaHandle(request.rank, self.name, request.run_id, metadata)

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended; asks again as long as the control plane cannot be reached."""
        return await self._watcher.wait(handle)

    async def cancel(self, handle: ReplicaHandle) -> None:
        """Ask for the end of the call, and kill its container if it has not ended after the grace period."""
        if not self._watcher.orders.is_accepted(call_id_of(handle)):  # again could interrupt its own cleanup
            await self._order(handle, Asked.to_end)
        if await self._watcher.wait_until(handle, time.monotonic() + self._grace_s) is None:
            await self._order(handle, Asked.to_be_killed)
            self._watcher.notify(handle)

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return the status the call ended with, or `running`: Modal does not tell queued calls from running ones."""
        pauses = Pauses()
        while True:
            try:
                row = await self._watcher.look(handle, self._client)
            except StillRunningError:
                return ReplicaStatus.running
            except NoAnswerError:
                continue
            if row is not None:
                return row.status
            await pauses.wait()

    def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        """Read the lines that Modal keeps of the call."""
        require_asyncio()
        call = modal.FunctionCall.from_id(call_id_of(handle), client=self._client)
        if not follow:
            return self._logs.lines(call, n_lines)
        function_id = handle.metadata.get("function_id")
        return self._logs.follow(
            call,
            n_lines,
            call_id=str(handle.call_id),
            function_id=function_id if isinstance(function_id, str) else None,
            wait=partial(self.wait, handle),
        )

    async def close(self) -> None:
        """Close what this backend alone has opened."""
        await self._connections.leave(self._watcher)

    def _note_launch(self, request: SpawnRequest) -> None:
        with self._lock:
            if self._launches.setdefault(request.run_id, request.launch_id) != request.launch_id:
                raise ExecutorError(f"run id {request.run_id!r} is already used; leave run_id out for a fresh one")

    async def _timeout_of(self, function: modal.Function[..., Any, Any]) -> float:
        if function not in self._timeouts:
            info = await function.info.aio()
            self._timeouts[function] = float(info.timeout) if info.timeout else OWN_TIMEOUT_S
        return self._timeouts[function]

    async def _order(self, handle: ReplicaHandle, what: Asked) -> None:
        """Have Modal accept the order, however often it must be told; the asker has the deadline."""
        pauses, again = Pauses(), False
        orders, call_id = self._watcher.orders, call_id_of(handle)
        orders.note(call_id, what)  # first: its end may be known sooner than that the order was accepted
        while True:
            try:
                await self._order_in_turn(handle, what, again=again)
            except NoAnswerError:
                again = True
            except Exception as exc:
                if not is_transient(exc):
                    raise explain(exc, f"cancelling rank {handle.rank}") from exc
                again = False
            else:
                orders.note_accepted(call_id)
                return
            await pauses.wait()

    async def _order_in_turn(self, handle: ReplicaHandle, what: Asked, *, again: bool) -> None:
        turn = await self._connections.turn(Kind.order, self._watcher, again=again)
        try:
            kill = what is Asked.to_be_killed
            await self._connections.questions.end(call_id_of(handle), turn.client, kill=kill, within_s=_ANSWER_S)
        finally:
            turn.give_back()


def require_asyncio() -> None:
    """Raise RuntimeError unless asyncio runs this task: under trio, Modal's client fails only after it has acted."""
    try:
        asyncio.get_running_loop()
    except RuntimeError as exc:
        raise RuntimeError(
            "Modal's client runs on asyncio only: use asyncio.run or anyio.run's asyncio backend"
        ) from exc


async def _spawn(function: modal.Function[..., Any, Any], kwargs: dict[str, Any]) -> modal.FunctionCall[Any]:
    pauses, latest = Pauses(), time.monotonic() + _LATEST_RETRY_S
    while True:
        try:
            return await function.spawn.aio(**kwargs)
        except modal.exception.ResourceExhaustedError as exc:  # refused, so trying again cannot start it twice
            if time.monotonic() >= latest:
                raise explain(exc, "Modal takes no more calls now") from exc
        except modal.exception.Error as exc:
            if is_transient(exc):
                raise UncertainSpawnError(f"Modal's answer is lost ({exc}); {_UNCERTAIN}") from exc
            raise explain(exc, "spawning") from exc
        await pauses.wait()
