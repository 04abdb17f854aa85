"""RPCs that define and look up functions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import App, Function, State, new_id

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller
    from aiodiloco.testing.modal.scheduler import Scheduler
    from aiodiloco.testing.modal.working_copies import WorkingCopies

__all__ = ["FunctionService", "apply_options"]

_DATA_FIELDS = tuple(
    field.name
    for field in api_pb2.FunctionData.DESCRIPTOR.fields
    if field.name in api_pb2.Function.DESCRIPTOR.fields_by_name
)
_SAME_NAME_OPTIONS = (
    "concurrency_limit",
    "timeout_secs",
    "task_idle_timeout_secs",
    "target_concurrent_inputs",
    "max_concurrent_inputs",
    "batch_max_size",
    "batch_linger_ms",
    "cloud_provider_str",
    "routing_region",
)


def apply_options(definition: api_pb2.Function, options: api_pb2.FunctionOptions) -> api_pb2.Function:
    """Return a definition with what `with_options` set in place of the decorator's own."""
    variant = api_pb2.Function()
    variant.CopyFrom(definition)
    for name in _SAME_NAME_OPTIONS:
        if options.HasField(name):  # type: ignore[arg-type]  # the names are checked where they are listed
            setattr(variant, name, getattr(options, name))
    for name in ("resources", "retry_policy", "scheduler_placement"):
        if options.HasField(name):  # type: ignore[arg-type]
            getattr(variant, name).MergeFrom(getattr(options, name))
    for name in ("secret_ids", "volume_mounts", "cloud_bucket_mounts"):
        if getattr(options, f"replace_{name}"):
            variant.ClearField(name)  # type: ignore[arg-type]
            getattr(variant, name).extend(getattr(options, name))
    return variant


class FunctionService:
    """Keeps functions, and the variants that `with_options` binds."""

    def __init__(self, state: State, scheduler: Scheduler, copies: WorkingCopies) -> None:
        self._state = state
        self._scheduler = scheduler
        self._copies = copies

    async def function_precreate(
        self, request: api_pb2.FunctionPrecreateRequest, _caller: Caller
    ) -> api_pb2.FunctionPrecreateResponse:
        """Give a function its id, before its definition is complete."""
        app = self._app(request.app_id)
        definition = api_pb2.Function(function_name=request.function_name, function_type=request.function_type)
        definition.function_schema.CopyFrom(request.function_schema)
        definition.supported_input_formats.extend(request.supported_input_formats)
        definition.supported_output_formats.extend(request.supported_output_formats)
        function = self._state.functions.get(request.existing_function_id)
        if function is None:
            function = self._define(new_id("fu"), app, definition, api_pb2.FunctionData())
        return api_pb2.FunctionPrecreateResponse(function_id=function.id, handle_metadata=function.metadata)

    async def function_create(
        self, request: api_pb2.FunctionCreateRequest, _caller: Caller
    ) -> api_pb2.FunctionCreateResponse:
        """Define a function, or define it anew: its containers of before take no further inputs."""
        if not request.HasField("function") and not request.function_data.ranked_functions:
            raise GRPCError(Status.INVALID_ARGUMENT, "a function without a definition")
        if request.HasField("function"):
            definition = request.function
            data = _data_of(definition)
        else:
            data = request.function_data
            definition = data.ranked_functions[0].function
        function = self._define(
            request.existing_function_id or new_id("fu"), self._app(request.app_id), definition, data
        )
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=definition,
            function_data=data,
            handle_metadata=function.metadata,
        )

    async def function_get(self, request: api_pb2.FunctionGetRequest, _caller: Caller) -> api_pb2.FunctionGetResponse:
        """Look up a deployed function by the app's and its own name."""
        app = self._state.deployed(request.app_name)
        function = self._state.functions.get(app.function_ids.get(request.object_tag, "")) if app else None
        if function is None:
            raise GRPCError(
                Status.NOT_FOUND, f"no function {request.object_tag!r} in a deployed app {request.app_name!r}"
            )
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.metadata, function=function.data
        )

    async def function_get_by_id(
        self, request: api_pb2.FunctionGetByIdRequest, _caller: Caller
    ) -> api_pb2.FunctionGetByIdResponse:
        """Look up a function by its id."""
        function = self._function(request.function_id)
        return api_pb2.FunctionGetByIdResponse(function=function.data, handle_metadata=function.metadata)

    async def function_bind_params(
        self, request: api_pb2.FunctionBindParamsRequest, _caller: Caller
    ) -> api_pb2.FunctionBindParamsResponse:
        """Return the variant of a function with these options; the same one for the same options."""
        base = self._function(request.function_id)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        variant_id = f"fu-{digest[:22]}"
        variant = self._state.functions.get(variant_id)
        if variant is None or variant.version != base.version:
            definition = apply_options(base.definition, request.function_options)
            variant = self._define(variant_id, base.app, definition, _data_of(definition), base_id=base.id)
            variant.version = base.version
        return api_pb2.FunctionBindParamsResponse(bound_function_id=variant.id, handle_metadata=variant.metadata)

    def _define(
        self, function_id: str, app: App, definition: api_pb2.Function, data: api_pb2.FunctionData, *, base_id: str = ""
    ) -> Function:
        self._copies.check(definition.volume_mounts)
        metadata = _metadata_of(definition, app, base_id=base_id)
        function = self._state.functions.get(function_id)
        if function is None:
            function = Function(function_id, app, definition, data, metadata)
            self._state.functions[function_id] = function
        else:
            function.definition, function.data, function.metadata = definition, data, metadata
            function.version += 1
            self._scheduler.retire_old_containers(function)
        return function

    def _app(self, app_id: str) -> App:
        app = self._state.apps.get(app_id)
        if app is None or app.stopped:
            raise GRPCError(Status.NOT_FOUND, f"app {app_id!r} not found, or stopped")
        return app

    def _function(self, function_id: str) -> Function:
        function = self._state.functions.get(function_id)
        if function is None:
            raise GRPCError(Status.NOT_FOUND, f"function {function_id!r} not found")
        return function


def _data_of(definition: api_pb2.Function) -> api_pb2.FunctionData:
    """Return what the client reads a function's settings from."""
    data = api_pb2.FunctionData()
    for name in _DATA_FIELDS:
        value = getattr(definition, name)
        if data.DESCRIPTOR.fields_by_name[name].message_type is None and not hasattr(value, "extend"):
            setattr(data, name, value)
    data.ranked_functions.append(api_pb2.FunctionData.RankedFunction(rank=0, function=definition))
    return data


def _metadata_of(definition: api_pb2.Function, app: App, *, base_id: str) -> api_pb2.FunctionHandleMetadata:
    metadata = api_pb2.FunctionHandleMetadata(
        function_name=definition.function_name,
        function_type=definition.function_type,
        definition_id=new_id("de"),
        app_id=app.id,
        base_function_id=base_id,
        supported_input_formats=definition.supported_input_formats,
        supported_output_formats=definition.supported_output_formats,
    )
    metadata.function_schema.CopyFrom(definition.function_schema)
    return metadata
