"""RPCs about the client, the environment and apps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import App, State, new_id

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller
    from aiodiloco.testing.modal.logs import LogStore
    from aiodiloco.testing.modal.scheduler import Scheduler

__all__ = ["IMAGE_BUILDER_VERSION", "AppService", "layout_of"]

IMAGE_BUILDER_VERSION = "2025.06"

_ENDS_WITH_ITS_CLIENT = (api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING)


def layout_of(app: App, state: State) -> api_pb2.AppLayout:
    """Return the functions of an app and what they depend on, as the client and containers expect them."""
    functions = [state.functions[function_id] for function_id in app.function_ids.values()]
    needed = {needed.object_id for function in functions for needed in function.definition.object_dependencies}
    return api_pb2.AppLayout(
        objects=[
            *(api_pb2.Object(object_id=each.id, function_handle_metadata=each.metadata) for each in functions),
            *(_needed(object_id, state) for object_id in sorted(needed)),
        ],
        function_ids=app.function_ids,
    )


def _needed(object_id: str, state: State) -> api_pb2.Object:
    volume = state.volumes.get(object_id)
    return api_pb2.Object(object_id=object_id, volume_metadata=volume.metadata if volume else None)


class AppService:
    """Creates, publishes and stops apps."""

    def __init__(self, state: State, scheduler: Scheduler, logs: LogStore) -> None:
        self._state = state
        self._scheduler = scheduler
        self._logs = logs

    async def client_hello(self, _request: Empty, _caller: Caller) -> api_pb2.ClientHelloResponse:
        """Greet."""
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    async def auth_token_get(
        self, _request: api_pb2.AuthTokenGetRequest, _caller: Caller
    ) -> api_pb2.AuthTokenGetResponse:
        """Return a token, which nothing looks at."""
        return api_pb2.AuthTokenGetResponse(token="loopback")  # noqa: S106 - not a secret

    async def environment_get_or_create(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        """Return the one environment, under whatever name it is asked for."""
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-loopback",
            metadata=api_pb2.EnvironmentMetadata(
                name=request.deployment_name or "main",
                settings=api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION),
            ),
        )

    async def app_create(self, request: api_pb2.AppCreateRequest, _caller: Caller) -> api_pb2.AppCreateResponse:
        """Create an app."""
        app = self._create(request.description, request.app_state)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"https://modal.com/apps/{app.id}")

    async def app_get_or_create(
        self, request: api_pb2.AppGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.AppGetOrCreateResponse:
        """Return the app of a name, deploying an empty one if there is none and the request says so."""
        app = self._state.deployed(request.app_name)
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"app {request.app_name!r} not found")
            app = self._create(request.app_name, api_pb2.APP_STATE_DEPLOYED)
            app.name = request.app_name
        return api_pb2.AppGetOrCreateResponse(app_id=app.id)

    def _create(self, description: str, state: api_pb2.AppState.ValueType) -> App:
        app = App(new_id("ap"), description, state)
        self._state.apps[app.id] = app
        return app

    async def app_get_by_deployment_name(
        self, request: api_pb2.AppGetByDeploymentNameRequest, _caller: Caller
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        """Return the id of the deployed app, empty if there is none."""
        app = self._state.deployed(request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.id if app else "")

    async def app_get_layout(
        self, request: api_pb2.AppGetLayoutRequest, _caller: Caller
    ) -> api_pb2.AppGetLayoutResponse:
        """Return the functions of an app."""
        return api_pb2.AppGetLayoutResponse(app_layout=layout_of(self._app(request.app_id), self._state))

    async def app_publish(self, request: api_pb2.AppPublishRequest, _caller: Caller) -> api_pb2.AppPublishResponse:
        """Make an app's functions the current ones; with a name, deploy it."""
        app = self._app(request.app_id)
        app.function_ids = dict(request.function_ids)
        app.deployed_at = time.time()
        if request.app_state:
            app.state = request.app_state
        if app.state == api_pb2.APP_STATE_DEPLOYED:
            app.name = request.name or app.name or app.description
        for function_id in app.function_ids.values():
            self._scheduler.pump(self._state.functions[function_id])
        return api_pb2.AppPublishResponse(url=f"https://modal.com/apps/{app.id}", deployed_at=app.deployed_at)

    async def app_heartbeat(self, request: api_pb2.AppHeartbeatRequest, _caller: Caller) -> Empty:
        """Note that the client of an app lives."""
        self._app(request.app_id).last_seen = time.monotonic()
        return Empty()

    async def app_client_disconnect(self, request: api_pb2.AppClientDisconnectRequest, _caller: Caller) -> Empty:
        """End an ephemeral app; a detached one goes on until its calls have ended, a deployed one without end."""
        app = self._app(request.app_id)
        if app.state in _ENDS_WITH_ITS_CLIENT:
            self._stop(app)
        elif app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
        return Empty()

    async def app_stop(self, request: api_pb2.AppStopRequest, _caller: Caller) -> Empty:
        """End an app, whatever its state."""
        self._stop(self._app(request.app_id))
        return Empty()

    async def stop_abandoned(self, *, after_s: float) -> None:
        """Stop ephemeral apps whose client was not heard of for so long, and detached ones that are done, forever."""
        while True:
            await anyio.sleep(min(0.5, after_s / 4))
            for app in [app for app in self._state.apps.values() if not app.stopped]:
                is_silent = app.state in _ENDS_WITH_ITS_CLIENT and time.monotonic() - app.last_seen > after_s
                is_left = app.state == api_pb2.APP_STATE_DETACHED_DISCONNECTED
                if is_silent or (is_left and not self._has_unfinished_calls(app)):
                    self._stop(app)

    def _has_unfinished_calls(self, app: App) -> bool:
        calls = (call for call in self._state.calls.values() if call.function.app is app)
        return any(entry.output is None for call in calls for entry in call.inputs)

    def _stop(self, app: App) -> None:
        self._scheduler.stop_app(app)
        self._logs.changed.notify()

    async def app_get_tags(self, request: api_pb2.AppGetTagsRequest, _caller: Caller) -> api_pb2.AppGetTagsResponse:
        """Return no tags."""
        self._app(request.app_id)
        return api_pb2.AppGetTagsResponse()

    async def app_list(self, _request: api_pb2.AppListRequest, _caller: Caller) -> api_pb2.AppListResponse:
        """Return all apps."""
        return api_pb2.AppListResponse(
            apps=[
                api_pb2.AppListResponse.AppListItem(
                    app_id=app.id,
                    name=app.name,
                    description=app.description,
                    state=api_pb2.APP_STATE_STOPPED if app.stopped else app.state,
                )
                for app in self._state.apps.values()
            ]
        )

    def _app(self, app_id: str) -> App:
        app = self._state.apps.get(app_id)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"app {app_id!r} not found")
        return app
