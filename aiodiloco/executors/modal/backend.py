"""What the core asks of a backend, for Modal function calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import modal
import modal.exception

from aiodiloco.errors import ExecutorError, HandleError, UncertainSpawnError
from aiodiloco.executors.modal.ends import Ends, Waiter
from aiodiloco.executors.modal.errors import explain
from aiodiloco.executors.modal.logs import read_logs
from aiodiloco.executors.modal.outcome import Asked, is_from_replica, is_transient, row_of_exception, row_of_value
from aiodiloco.executors.modal.pauses import Pauses
from aiodiloco.executors.modal.slots import Slots
from aiodiloco.executors.modal.target import OWN_TIMEOUT_S, Target
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiodiloco.executors.port import SpawnRequest
    from aiodiloco.records import JSON

__all__ = ["ModalBackend"]

# A client sends everything over one HTTP/2 connection, whose server allows 100 requests at once by default. Long polls
# must leave room for the rest, or a cancellation waits until they time out; and the polls by which cancellations are
# confirmed must not queue behind those of all the replicas that still run. What is left is for spawns, which are short.
_NUM_POLLS = 64
_NUM_CONFIRMATIONS = 12
_NUM_ORDERS = 12

_LONG_POLL_S = 5.0
_SHORT_POLL_S = 1.0  # when there are more replicas than polls, which then take turns
_ANSWER_S = 3.0  # an answer that takes longer is lost; asking again is harmless
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
        self._polls = Slots(_NUM_POLLS)
        self._confirmations = Slots(_NUM_CONFIRMATIONS)
        self._orders = Slots(_NUM_ORDERS)
        self._lock = threading.Lock()
        self._ends = Ends()
        self._asked: dict[str, Asked] = {}
        self._launches: dict[str, str] = {}

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
            timeout_s = await _timeout_of(replica.function)
        metadata: dict[str, JSON] = {
            "call_id": call.object_id,
            "spawn_ts": time.time(),
            "incarnation": request.incarnation,
            "timeout_s": timeout_s,
        }
        return ReplicaHandle(request.rank, self.name, request.run_id, metadata)

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended; asks again as long as the control plane cannot be reached."""
        with self._ends.waiting(str(handle.call_id)) as waiter:
            row = await self._watch(handle, waiter)
        self._ends.tell(str(handle.call_id), row)
        return row

    async def cancel(self, handle: ReplicaHandle) -> None:
        """Ask for the end of the call, and kill its container if it has not ended after the grace period."""
        await self._order(handle, Asked.to_end)
        with anyio.move_on_after(self._grace_s):
            await self.wait(handle)
            return
        await self._order(handle, Asked.to_be_killed)

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return the status the call ended with, or `running`: Modal does not tell queued calls from running ones."""
        call, pauses = self._call(handle), Pauses()
        while True:
            try:
                row = await self._end(handle, call, timeout=0)
            except _StillRunningError:
                return ReplicaStatus.running
            if row is not None:
                return row.status
            await pauses.wait()

    def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        """Read the lines that Modal keeps of the call."""
        require_asyncio()
        return read_logs(self._call(handle), n_lines=n_lines, follow=follow, wait=lambda: self.wait(handle))

    def _note_launch(self, request: SpawnRequest) -> None:
        with self._lock:
            if self._launches.setdefault(request.run_id, request.launch_id) != request.launch_id:
                raise ExecutorError(f"run id {request.run_id!r} is already used; leave run_id out for a fresh one")

    def _call(self, handle: ReplicaHandle) -> modal.FunctionCall[Any]:
        if handle.call_id is None:
            raise HandleError(
                f"the handle of rank {handle.rank} of {handle.run_id} has no call_id: not one of this backend's"
            )
        return modal.FunctionCall.from_id(handle.call_id, client=self._client)

    async def _watch(self, handle: ReplicaHandle, waiter: Waiter) -> ReplicaResult:
        call, pauses = self._call(handle), Pauses()
        while True:
            polls = self._polls if self._asked_of(handle) is Asked.nothing else self._confirmations
            with anyio.CancelScope() as waiter.scope:  # not around a request: one that has its answer would complain
                await polls.acquire()
            if waiter.scope.cancelled_caught and waiter.row is not None:
                return waiter.row
            try:
                row = waiter.row or await self._poll(handle, call)
            except _StillRunningError:
                pauses = Pauses()
                continue
            finally:
                polls.release()
            if row is not None:
                return row
            await pauses.wait()

    async def _poll(self, handle: ReplicaHandle, call: modal.FunctionCall[Any]) -> ReplicaResult | None:
        """Do what `_end` does, but raise _StillRunningError only after some seconds."""
        with anyio.move_on_after(_LONG_POLL_S if self._ends.num_waiters <= _NUM_POLLS else _SHORT_POLL_S):
            return await self._end(handle, call)
        with anyio.move_on_after(
            _ANSWER_S
        ):  # without a timeout, the client waits forever for a result that has expired
            return await self._end(handle, call, timeout=0)
        return None

    async def _end(
        self, handle: ReplicaHandle, call: modal.FunctionCall[Any], *, timeout: float | None = None
    ) -> ReplicaResult | None:
        """Return how the replica ended, once it has, or None if the control plane could not be asked.

        The client's `timeout` is no deadline (it asks four times, with five seconds more for each), so waiting is
        bounded from outside; 0 makes it ask once and not wait.

        Raises:
            _StillRunningError: it was asked once, and the replica has not ended.
        """
        try:
            value = await call.get.aio(timeout=timeout)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # the client re-raises whatever ended the replica, also SystemExit
            if timeout is not None and type(exc) is TimeoutError and not is_from_replica(exc):
                raise _StillRunningError from exc
            return self._row_of_exception(handle, exc)
        return row_of_value(handle, value)

    def _row_of_exception(self, handle: ReplicaHandle, exc: BaseException) -> ReplicaResult | None:
        if not isinstance(exc, (Exception, SystemExit)) and not is_from_replica(exc):
            raise exc
        if isinstance(exc, (modal.exception.AuthError, modal.exception.PermissionDeniedError)):
            raise explain(exc, f"watching rank {handle.rank}") from exc
        return row_of_exception(handle, exc, asked=self._asked_of(handle))

    def _asked_of(self, handle: ReplicaHandle) -> Asked:
        return self._asked.get(str(handle.call_id), Asked.nothing)

    async def _order(self, handle: ReplicaHandle, what: Asked) -> None:
        """Have Modal accept the order, however often it must be told; the asker has the deadline."""
        call, pauses = self._call(handle), Pauses()
        with self._lock:  # before Modal hears of it: the replica's end may be known sooner than the order's acceptance
            self._asked[str(handle.call_id)] = max(what, self._asked_of(handle))
        while True:
            async with self._orders.hold():
                with anyio.move_on_after(_ANSWER_S), _transient_suppressed(f"cancelling rank {handle.rank}"):
                    await call.cancel.aio(terminate_containers=what is Asked.to_be_killed)
                    return
            await pauses.wait()


class _StillRunningError(Exception):
    """The call has not ended."""


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


async def _timeout_of(function: modal.Function[..., Any, Any]) -> float:
    info = await function.info.aio()
    return float(info.timeout) if info.timeout else OWN_TIMEOUT_S


@contextlib.contextmanager
def _transient_suppressed(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        if not is_transient(exc):
            raise explain(exc, what) from exc
