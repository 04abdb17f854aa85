"""From a request on the wire to the method that answers it, through the faults that are in force."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import anyio
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from anyio.abc import TaskGroup
    from google.protobuf.message import Message
    from grpclib.server import Stream

    from aiodiloco.testing.modal.faults import Fault, FaultPlan

__all__ = ["RPC_NAMES", "Caller", "Dispatcher", "make_service"]

RPC_NAMES = frozenset(ModalClientBase.__abstractmethods__)

_LONG_POLLS = {"FunctionGetOutputs", "FunctionGetInputs", "ContainerHeartbeat", "AppGetLogs"}
_REMEMBERED = {"AppCreate", "AppGetOrCreate", "FunctionMap", "FunctionPutInputs"}
_MOST_REMEMBERED = 20_000


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who sent a request: a client, or the container with this id."""

    task_id: str
    idempotency_key: str

    @property
    def sender(self) -> str:
        """`"container"` or `"client"`."""
        return "container" if self.task_id else "client"


class Dispatcher:
    """Finds the method for an RPC, and applies the faults."""

    def __init__(self, services: Iterable[object], faults: FaultPlan, task_group: TaskGroup) -> None:
        self._methods = {name: method for service in services for name, method in _rpcs_of(service)}
        self._faults = faults
        self._task_group = task_group
        self._replies: OrderedDict[tuple[str, str], Message] = OrderedDict()

    async def serve(self, name: str, stream: Stream[Any, Any]) -> None:
        """Answer one request."""
        request = await stream.recv_message()
        assert request is not None
        metadata: Mapping[str, str | bytes] = stream.metadata or {}
        caller = Caller(str(metadata.get("x-task", "")), str(metadata.get("x-idempotency-key", "")))
        faults = self._faults.strike(name, caller.sender)
        method = self._methods.get(name)
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"the loopback control plane does not implement {name}")
        if inspect.isasyncgenfunction(method):
            await _come_in(faults)
            async for item in method(request, caller):
                await stream.send_message(item)
            return
        work = _Work(name, method, request, caller, faults)
        reply = await self._answer(work)
        await _go_out(faults)
        await stream.send_message(reply)

    async def _answer(self, work: _Work) -> Message:
        if work.name in _LONG_POLLS or not any(fault.kind == "latency" for fault in work.faults):
            await _come_in(work.faults)
            return await self._once(work)
        answer = _Answer()
        self._task_group.start_soon(self._carry_out, work, answer)
        return await answer.wait()

    async def _carry_out(self, work: _Work, answer: _Answer) -> None:
        """Do the work in a task of the server's own: it is under way, whether or not its sender still waits."""
        try:
            await _come_in(work.faults)
            answer.reply = await self._once(work)
        except GRPCError as exc:
            answer.error = exc
        finally:
            answer.done.set()

    async def _once(self, work: _Work) -> Message:
        key = (work.name, work.caller.idempotency_key)
        if work.name not in _REMEMBERED or not work.caller.idempotency_key:
            return await work.method(work.request, work.caller)
        if key not in self._replies:
            self._replies[key] = await work.method(work.request, work.caller)
            if len(self._replies) > _MOST_REMEMBERED:
                self._replies.popitem(last=False)
        return self._replies[key]


@dataclasses.dataclass(frozen=True)
class _Work:
    """One request, with what is needed to answer it."""

    name: str
    method: Callable[..., Awaitable[Message]]
    request: Message
    caller: Caller
    faults: list[Fault]


@dataclasses.dataclass
class _Answer:
    """What became of a request that is carried out apart from its sender."""

    done: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    reply: Message | None = None
    error: GRPCError | None = None

    async def wait(self) -> Message:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply


async def _come_in(faults: list[Fault]) -> None:
    for fault in faults:
        match fault.kind:
            case "latency":
                await anyio.sleep((fault.seconds or 0) / 2)
            case "unavailable":
                raise GRPCError(Status.UNAVAILABLE, "injected: unavailable")
            case "throttle":
                details = (
                    [api_pb2.RPCRetryPolicy(retry_after_secs=fault.seconds)] if fault.seconds is not None else None
                )
                raise GRPCError(Status.RESOURCE_EXHAUSTED, "injected: throttled", details)
            case "hang":
                await anyio.sleep_forever()
            case "lost_response":
                pass


async def _go_out(faults: list[Fault]) -> None:
    for fault in faults:
        if fault.kind == "latency":
            await anyio.sleep((fault.seconds or 0) / 2)
        if fault.kind == "lost_response":
            raise GRPCError(Status.UNAVAILABLE, "injected: the response was lost")


def _rpcs_of(service: object) -> Iterable[tuple[str, Callable[..., Any]]]:
    """Yield (RPC, method) of a service: `function_map` answers `FunctionMap`."""
    for attribute in dir(service):
        name = "".join(part.capitalize() for part in attribute.split("_"))
        if not attribute.startswith("_") and name in RPC_NAMES:
            yield name, getattr(service, attribute)


def make_service(dispatcher: Dispatcher) -> ModalClientBase:
    """Return the client's own generated service class with every RPC handed to the dispatcher."""

    def method(name: str) -> Callable[[ModalClientBase, Stream[Any, Any]], Awaitable[None]]:
        async def serve(_: ModalClientBase, stream: Stream[Any, Any]) -> None:
            await dispatcher.serve(name, stream)

        return serve

    cls = type("LoopbackControlPlane", (ModalClientBase,), {name: method(name) for name in RPC_NAMES})
    service: ModalClientBase = cls()
    return service
