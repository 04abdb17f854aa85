"""RPCs that call functions and ask for results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import Call, Input, State, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiodiloco.testing.modal.dispatch import Caller
    from aiodiloco.testing.modal.scheduler import Scheduler

__all__ = ["CallService"]

_LONGEST_POLL_S = 60.0
_Status = api_pb2.GenericResult


class CallService:
    """Takes inputs, hands outputs out, cancels."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    async def function_map(self, request: api_pb2.FunctionMapRequest, _caller: Caller) -> api_pb2.FunctionMapResponse:
        """Create a call, with its inputs if the request carries them."""
        function = self._state.functions.get(request.function_id)
        if function is None or function.app.stopped:
            raise GRPCError(Status.NOT_FOUND, f"function {request.function_id!r} not found, or its app is stopped")
        if request.function_call_type != api_pb2.FUNCTION_CALL_TYPE_UNARY:
            raise GRPCError(
                Status.UNIMPLEMENTED, "the loopback control plane does not implement map: use spawn or remote"
            )
        call = Call(new_id("fc"), function, request.function_call_invocation_type, request.parent_input_id)
        self._state.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=self._put(call, request.pipelined_inputs),
            retry_policy=function.definition.retry_policy,
            max_inputs_outstanding=1000,
        )

    async def function_put_inputs(
        self, request: api_pb2.FunctionPutInputsRequest, _caller: Caller
    ) -> api_pb2.FunctionPutInputsResponse:
        """Add inputs to a call."""
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(self._call(request.function_call_id), request.inputs))

    def _put(
        self, call: Call, items: Iterable[api_pb2.FunctionPutInputsItem]
    ) -> list[api_pb2.FunctionPutInputsResponseItem]:
        put = []
        for item in items:
            entry = Input(new_id("in"), item.idx, call, item.input)
            self._state.inputs[entry.id] = entry
            call.inputs.append(entry)
            self._scheduler.submit(entry)
            put.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=entry.id, input_jwt=entry.id))
        return put

    async def function_get_outputs(
        self, request: api_pb2.FunctionGetOutputsRequest, _caller: Caller
    ) -> api_pb2.FunctionGetOutputsResponse:
        """Return the outputs in a range of indices, after waiting for the first if there is none yet."""
        call = self._call(request.function_call_id)
        wanted = range(request.start_idx, request.end_idx + 1)

        def outputs() -> list[api_pb2.FunctionGetOutputsItem]:
            return [entry.output for entry in call.inputs if entry.output is not None and entry.idx in wanted]

        # An expired call is not answered early: the client would ask again at once, for as long as its own time lasts.
        await call.changed.wait_until(
            lambda: bool(outputs()) and not call.expired, within_s=min(request.timeout, _LONGEST_POLL_S)
        )
        if call.expired:
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=0, last_entry_id="0-0")
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs(),
            idxs=[output.idx for output in outputs()],
            num_unfinished_inputs=sum(entry.output is None for entry in call.inputs),
            last_entry_id="0-0",
        )

    async def function_call_cancel(self, request: api_pb2.FunctionCallCancelRequest, _caller: Caller) -> Empty:
        """Cancel a call's unfinished inputs."""
        self._scheduler.cancel(self._call(request.function_call_id), terminate_containers=request.terminate_containers)
        return Empty()

    async def function_call_from_id(
        self, request: api_pb2.FunctionCallFromIdRequest, _caller: Caller
    ) -> api_pb2.FunctionCallFromIdResponse:
        """Return what a handle made from an id has to know."""
        call = self._call(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(app_id=call.function.app.id, function_id=call.function.id),
        )

    async def function_call_get_info(
        self, request: api_pb2.FunctionCallGetInfoRequest, _caller: Caller
    ) -> api_pb2.FunctionCallGetInfoResponse:
        """Return how many inputs are in which state."""
        call = self._call(request.function_call_id)
        statuses = [entry.output.result.status if entry.output else None for entry in call.inputs]
        known = (
            None,
            _Status.GENERIC_STATUS_SUCCESS,
            _Status.GENERIC_STATUS_TERMINATED,
            _Status.GENERIC_STATUS_TIMEOUT,
        )
        pending, succeeded, cancelled, timed_out = (
            api_pb2.InputCategoryInfo(total=statuses.count(status)) for status in known
        )
        failed = api_pb2.InputCategoryInfo(total=sum(status not in known for status in statuses))
        return api_pb2.FunctionCallGetInfoResponse(
            info=api_pb2.FunctionCallInfo(
                function_call_id=call.id,
                created_at=call.created_at,
                pending_inputs=pending,
                succeeded_inputs=succeeded,
                cancelled_inputs=cancelled,
                timeout_inputs=timed_out,
                failed_inputs=failed,
                total_inputs=len(call.inputs),
            )
        )

    async def function_get_call_graph(
        self, request: api_pb2.FunctionGetCallGraphRequest, _caller: Caller
    ) -> api_pb2.FunctionGetCallGraphResponse:
        """Return the call's inputs; pending and running look alike, as they do in Modal."""
        call = self._call(request.function_call_id)
        return api_pb2.FunctionGetCallGraphResponse(
            inputs=[
                api_pb2.InputCallGraphInfo(
                    input_id=entry.id,
                    function_call_id=call.id,
                    status=entry.output.result.status if entry.output else _Status.GENERIC_STATUS_UNSPECIFIED,
                    task_id=entry.attempt.container.id if entry.attempt else "",
                )
                for entry in call.inputs
            ],
            function_calls=[
                api_pb2.FunctionCallCallGraphInfo(
                    function_call_id=call.id,
                    parent_input_id=call.parent_input_id,
                    function_name=call.function.definition.function_name,
                    module_name=call.function.definition.module_name,
                )
            ],
        )

    def _call(self, call_id: str) -> Call:
        call = self._state.calls.get(call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"function call {call_id!r} not found")
        return call
