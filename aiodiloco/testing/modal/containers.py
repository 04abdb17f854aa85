"""RPCs that containers send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller
    from aiodiloco.testing.modal.records import Container, State
    from aiodiloco.testing.modal.scheduler import Scheduler

__all__ = ["ContainerService"]

_HEARTBEAT_S = 15.0  # as long as the runtime would sleep otherwise: so a cancellation is never late


class ContainerService:
    """Hands out inputs, takes outputs, passes cancellations on."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    async def container_hello(self, _request: Empty, caller: Caller) -> Empty:
        """Greet."""
        self._container(caller)
        return Empty()

    async def container_heartbeat(
        self, _request: api_pb2.ContainerHeartbeatRequest, caller: Caller
    ) -> api_pb2.ContainerHeartbeatResponse:
        """Answer when there is a cancellation to pass on, or the time is over."""
        container = self._container(caller)
        await container.changed.wait_until(lambda: bool(container.to_cancel), within_s=_HEARTBEAT_S)
        if not container.to_cancel:
            return api_pb2.ContainerHeartbeatResponse()
        # Said again with every heartbeat until there is an output: the runtime ignores an input it has not seen yet.
        return api_pb2.ContainerHeartbeatResponse(
            cancel_input_event=api_pb2.CancelInputEvent(input_ids=sorted(container.to_cancel))
        )

    async def function_get_inputs(
        self, _request: api_pb2.FunctionGetInputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetInputsResponse:
        """Return an input when there is one, or tell the container to end."""
        entry = await self._scheduler.next_input(self._container(caller))
        if entry is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        item = api_pb2.FunctionGetInputsItem(
            input_id=entry.id,
            input=entry.payload,
            function_call_id=entry.call.id,
            function_call_invocation_type=entry.call.invocation,
            retry_count=entry.retry_count,
            function_map_idx=entry.idx,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def function_put_outputs(self, request: api_pb2.FunctionPutOutputsRequest, caller: Caller) -> Empty:
        """Take outputs."""
        container = self._container(caller)
        for item in request.outputs:
            self._scheduler.put_output(container, item)
        return Empty()

    async def task_result(self, request: api_pb2.TaskResultRequest, caller: Caller) -> Empty:
        """Note why a container could not start."""
        self._container(caller).failure = request.result
        return Empty()

    async def container_stop(
        self, request: api_pb2.ContainerStopRequest, _caller: Caller
    ) -> api_pb2.ContainerStopResponse:
        """Stop a container: its input runs again elsewhere."""
        container = self._state.containers.get(request.task_id)
        if container is not None:
            self._scheduler.preempt(container)
        return api_pb2.ContainerStopResponse()

    async def task_list(self, request: api_pb2.TaskListRequest, _caller: Caller) -> api_pb2.TaskListResponse:
        """Return the containers of an app, or all."""
        return api_pb2.TaskListResponse(
            tasks=[
                api_pb2.TaskStats(
                    task_id=container.id,
                    app_id=container.function.app.id,
                    app_description=container.function.app.description,
                    enqueued_at=container.enqueued_at,
                    started_at=container.enqueued_at,
                )
                for container in self._state.containers.values()
                if request.app_id in ("", container.function.app.id)
            ]
        )

    def _container(self, caller: Caller) -> Container:
        container = self._state.containers.get(caller.task_id)
        if container is None:
            raise GRPCError(Status.NOT_FOUND, f"container {caller.task_id!r} is not running")
        return container
