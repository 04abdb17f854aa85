"""A Modal control plane on this machine, as a context manager."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.from_thread
import anyio.to_thread
import modal
from modal._serialization import deserialize_data_format
from modal_proto import api_pb2

from aiodiloco.testing.modal.control_plane import ControlPlane, Settings, running_control_plane
from aiodiloco.testing.modal.dispatch import RPC_NAMES
from aiodiloco.testing.modal.faults import FaultPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from aiodiloco.testing.modal.records import Call, Container, Input

__all__ = ["CallView", "LoopbackModal"]


@dataclasses.dataclass(frozen=True)
class CallView:
    """A function call as the control plane knows it.

    Attributes:
        id: The call's id, as `FunctionCall.object_id`.
        function_name: Name of the function.
        args: Positional arguments of its first input.
        kwargs: Keyword arguments of its first input.
        state: `"pending"`, `"running"`, or how it ended: `"success"`, `"failure"`, `"terminated"`, `"timeout"`,
            `"internal_failure"`, `"expired"`.
        num_attempts: How many containers were given its first input, one after the other.
        containers: Ids of the containers that have one of its inputs now.
    """

    id: str
    function_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: str
    num_attempts: int
    containers: tuple[str, ...]

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended: it costs money, or will."""
        return self.state in ("pending", "running")


class LoopbackModal:
    """Modal on this machine: the unmodified client talks to it, and Modal's own runtime runs the containers.

    An async context manager, and a sync one. The control plane runs in a thread of its own, containers are processes;
    when the context ends, or this process does, however it does, none of them is left.

    Args:
        port: Port to listen on, 0 for a free one.
        max_containers: How many containers may run at once; further inputs wait. Modal's plans allow 100 to 1000.
        idle_s: How long a container waits for another input before it ends. 0: every input gets a fresh container.
        preemption_grace_s: How long a preempted container may go on before it is killed.
        client_timeout_s: After how long without a heartbeat of its client an ephemeral app ends; clients send one every
            15 s.
        preload: Modules that every container has imported from the start, such as `torch`; it then starts in 10 ms.
        env: Environment variables for containers, on top of this process's own.
        streams_replay: Whether a log stream starts with the lines there are, or with the first new one.
    """

    faults: FaultPlan

    def __init__(
        self,
        *,
        port: int = 0,
        max_containers: int = 100,
        idle_s: float = 10.0,
        preemption_grace_s: float = 5.0,
        client_timeout_s: float = 60.0,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        streams_replay: bool = True,
    ) -> None:
        if max_containers < 1:
            raise ValueError(f"max_containers={max_containers}: give at least 1")
        self._settings = Settings(
            port=port,
            max_containers=max_containers,
            idle_s=idle_s,
            preemption_grace_s=preemption_grace_s,
            client_timeout_s=client_timeout_s,
            preload=tuple(preload),
            env=dict(env or {}),
            streams_replay=streams_replay,
        )
        self.faults = FaultPlan(RPC_NAMES)
        self._stack = contextlib.ExitStack()
        self._clients: list[modal.Client] = []
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._plane: ControlPlane | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(anyio.from_thread.start_blocking_portal("asyncio"))
            running = running_control_plane(self._settings, self.faults)
            self._plane = stack.enter_context(self._portal.wrap_async_context_manager(running))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._stack.close()

    async def __aenter__(self) -> Self:
        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.__exit__, exc_type, exc, traceback)

    @property
    def url(self) -> str:
        """Where the control plane listens."""
        return self._running().url

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which a client in another process talks to this control plane."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_ENVIRONMENT": "main",
        }

    async def client(self) -> modal.Client:
        """Return a new client, for `client=` wherever Modal takes one; it is closed with the context."""
        client = modal.Client(self.url, api_pb2.CLIENT_TYPE_CLIENT, ("ak-loopback", "as-loopback"))
        self._clients.append(await client.__aenter__())  # type: ignore[no-untyped-call]  # synchronicity generates it
        return client

    def calls(self) -> list[CallView]:
        """Return all function calls there were, in the order in which they were made."""
        return [self._view(call) for call in list(self._running().state.calls.values())]

    def call(self, call_id: str) -> CallView:
        """Return one function call.

        Raises:
            KeyError: there is none with this id.
        """
        return self._view(self._running().state.calls[call_id])

    def containers(self) -> list[str]:
        """Return the ids of all containers whose process has not ended."""
        return list(self._running().state.containers)

    def reset(self) -> None:
        """End all faults, and kill every call that has not ended. Apps stay."""
        self.faults.clear()
        plane, portal = self._running(), self._portal
        assert portal is not None
        portal.call(plane.scheduler.end_all_calls)

    async def crash(self, call_id: str) -> None:
        """Kill the container that has a call's input, as if its machine had died."""
        await self._in_loop(lambda plane: plane.scheduler.runner.signal(_container_of(plane, call_id), signal.SIGKILL))

    async def preempt(self, call_id: str) -> None:
        """Take the container away that has a call's input: interrupt it, and run the same input again elsewhere."""
        await self._in_loop(lambda plane: plane.scheduler.preempt(_container_of(plane, call_id)))

    async def run_again(self, call_id: str) -> None:
        """Run a call's input again elsewhere while the container that has it goes on, unseen: as if cut off.

        That container is not told, ends with its input, and what it says of that is ignored.
        """
        await self._in_loop(lambda plane: plane.scheduler.run_again(_container_of(plane, call_id)))

    async def expire(self, call_id: str) -> None:
        """Forget a call's result, as Modal does after seven days."""

        def expire(plane: ControlPlane) -> None:
            plane.state.calls[call_id].expired = True
            plane.state.calls[call_id].changed.notify()

        await self._in_loop(expire)

    @contextlib.asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Be unreachable for as long as the block lasts: every connection is cut, new ones are refused.

        Containers go on meanwhile; they lose their connection as well, and come back by themselves.
        """
        await self._await_in_loop(self._running().listener.down)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._await_in_loop(self._running().listener.up)

    async def _await_in_loop(self, function: Callable[[], Awaitable[object]]) -> None:
        assert self._portal is not None
        await anyio.to_thread.run_sync(self._portal.call, function)

    async def _in_loop(self, function: Callable[[ControlPlane], None]) -> None:
        plane, portal = self._running(), self._portal
        assert portal is not None
        await anyio.to_thread.run_sync(functools.partial(portal.call, function, plane))

    def _running(self) -> ControlPlane:
        if self._plane is None:
            raise RuntimeError("the loopback control plane is not running: enter `async with LoopbackModal()` first")
        return self._plane

    def _view(self, call: Call) -> CallView:
        args, kwargs = self._arguments(call.inputs[0]) if call.inputs else ((), {})
        return CallView(
            id=call.id,
            function_name=call.function.definition.function_name,
            args=args,
            kwargs=kwargs,
            state=_state_of(call),
            num_attempts=call.inputs[0].num_attempts if call.inputs else 0,
            containers=tuple(entry.attempt.container.id for entry in call.inputs if entry.attempt),
        )

    def _arguments(self, entry: Input) -> tuple[tuple[Any, ...], dict[str, Any]]:
        payload = entry.payload
        data = self._running().blobs.read(payload.args_blob_id) if payload.args_blob_id else payload.args
        args, kwargs = deserialize_data_format(data, payload.data_format, None)
        return tuple(args), dict(kwargs)


def _state_of(call: Call) -> str:
    if call.expired:
        return "expired"
    unfinished = [entry for entry in call.inputs if entry.output is None]
    if unfinished or not call.inputs:
        return "running" if any(entry.attempt for entry in unfinished) else "pending"
    statuses = [entry.output.result.status for entry in call.inputs if entry.output]
    worst = next((s for s in statuses if s != api_pb2.GenericResult.GENERIC_STATUS_SUCCESS), statuses[0])
    return str(api_pb2.GenericResult.GenericStatus.Name(worst)).removeprefix("GENERIC_STATUS_").lower()


def _container_of(plane: ControlPlane, call_id: str) -> Container:
    if call_id not in plane.state.calls:
        raise KeyError(f"no call {call_id!r} on this control plane")
    for entry in plane.state.calls[call_id].inputs:
        if entry.attempt is not None:
            return entry.attempt.container
    raise ValueError(f"call {call_id!r} is {_state_of(plane.state.calls[call_id])}: no container has an input of it")
