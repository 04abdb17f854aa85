"""`create_router`: the paths of the service, and the lifespan that holds its runs."""

from __future__ import annotations

import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, Depends, params
from fastapi.responses import HTMLResponse

from aiodiloco.fastapi.bodies import launch_request_model
from aiodiloco.fastapi.endpoints import Endpoints
from aiodiloco.fastapi.event_stream import EventStream
from aiodiloco.fastapi.failures import TranslatingRoute
from aiodiloco.fastapi.limits import Limits
from aiodiloco.fastapi.service import OnShutdown, Service
from aiodiloco.fastapi.streams import Streams
from aiodiloco.run.launching import executor_of

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI
    from pydantic import BaseModel

    from aiodiloco.executors.core import Executor
    from aiodiloco.executors.serverless import Entrypoint

__all__ = ["create_router", "lifespan"]


_WHY = {"type": "object", "properties": {"detail": {}}, "required": ["detail"]}


class RunsRouter(APIRouter):
    """An APIRouter that knows its service, for `lifespan`."""

    def __init__(self, service: Service) -> None:
        super().__init__(route_class=TranslatingRoute, lifespan=lambda _: service.running())
        self.service = service


def create_router(
    executor: Executor,
    store: str | os.PathLike[str],
    entrypoints: Mapping[str, Entrypoint | None],
    *,
    auth: Callable[..., Any] | params.Depends | None = None,
    insecure: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    lease: float | None = 60.0,
    on_shutdown: OnShutdown = "cancel",
) -> RunsRouter:
    """Return a router that launches, shows, streams and ends runs: `app.include_router(create_router(…), prefix=…)`.

    Including it passes its lifespan on to the app: when the server starts, the service takes up the runs of its backend
    and entrypoints that go on in the store; when it ends, they are ended, or left to the next one, within two seconds.

    Args:
        executor: Where replicas run. Leave it open as long as the app runs.
        store: Where runs are kept, as for `launch`.
        entrypoints: What may be launched: public name -> function or `"module:function"`. None where the executor has
            its function. A request can name nothing else.
        auth: A dependency that raises HTTPException (401 or 403) unless the request may do what the service can. It
            comes before everything else a request does; only /healthz and /readyz, which tell nothing, go without.
        insecure: Serve without `auth`: whoever reaches the port can start and end runs.
        limits: Bounds on what a request may ask for.
        lease: As for `launch`: seconds that replicas live on without a driver, and in which the service must be back
            if it left them by `on_shutdown="detach"`.
        on_shutdown: What becomes of the runs that this process drives when it ends: `"cancel"` ends them, `"detach"`
            lets them go on for the next process to take up.

    Raises:
        ValueError: neither `auth` nor `insecure`, no entrypoints, or another bad argument.
    """
    if on_shutdown not in ("cancel", "detach"):
        raise ValueError(f'on_shutdown must be "cancel" or "detach", not {on_shutdown!r}')
    if not entrypoints:
        raise ValueError("entrypoints is empty: name what may be launched, as {'train': 'module:function'}")
    service = Service(executor_of(executor), store, entrypoints, on_shutdown)
    model = launch_request_model(entrypoints, limits)
    router = RunsRouter(service)
    endpoints, guards = Endpoints(service, limits, model, lease), _guards(auth, insecure=insecure)
    _add_paths(router, endpoints, model, guards)
    _add_pages(router, endpoints, guards)
    _add_streams(router, Streams(service, limits), guards)
    return router


def lifespan(router: RunsRouter) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan for an app that mounts the router without `include_router`, or has a lifespan of its own.

        app = FastAPI(lifespan=aiodiloco.fastapi.lifespan(router))

    Giving it to an app that has the lifespan already does no harm.
    """
    if not isinstance(router, RunsRouter):
        raise TypeError(f"router must be what create_router returned, not {router!r}")

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncGenerator[None, None]:
        async with router.service.running():
            yield

    return running


def _guards(auth: Callable[..., Any] | params.Depends | None, *, insecure: bool) -> list[params.Depends]:
    if auth is None and not insecure:
        raise ValueError(
            "auth is required: give a dependency that raises HTTPException(401) unless the request may start and end "
            "runs; or insecure=True, where nobody else can reach the port"
        )
    if auth is None:
        return []
    return [auth if isinstance(auth, params.Depends) else Depends(auth)]


def _add_paths(router: APIRouter, own: Endpoints, model: type[BaseModel], guards: list[params.Depends]) -> None:
    router.add_api_route("/healthz", own.healthz)
    router.add_api_route("/readyz", own.readyz, responses=_problems(503))
    router.add_api_route("/entrypoints", own.describe, dependencies=guards, responses=_problems(401, 403))
    router.add_api_route(
        "/runs",
        own.launch,
        methods=["POST"],
        status_code=201,
        dependencies=guards,
        responses={
            200: {"description": "It was launched before, alike"},
            **_problems(401, 403, 409, 413, 415, 422, 429, 502, 503),
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}},
    )
    router.add_api_route("/runs", own.list_runs, dependencies=guards, responses=_problems(401, 403, 503))
    router.add_api_route(
        "/runs/{run_id}", own.get_run, dependencies=guards, responses=_problems(401, 403, 404, 409, 422, 502, 503)
    )
    router.add_api_route(
        "/runs/{run_id}",
        own.cancel_run,
        methods=["DELETE"],
        dependencies=guards,
        responses={
            202: {"description": "Not confirmed yet; the order to end it is in the store"},
            **_problems(401, 403, 404, 409, 422, 502, 503),
        },
    )


def _add_pages(router: APIRouter, own: Endpoints, guards: list[params.Depends]) -> None:
    router.add_api_route(
        "/page", own.index_page, response_class=HTMLResponse, dependencies=guards, responses=_problems(401, 403)
    )
    router.add_api_route(
        "/runs/{run_id}/page",
        own.run_page,
        response_class=HTMLResponse,
        dependencies=guards,
        responses=_problems(401, 403, 404, 422, 503),
    )


def _add_streams(router: APIRouter, own: Streams, guards: list[params.Depends]) -> None:
    for path, handler in (("/runs/{run_id}/events", own.events), ("/runs/{run_id}/logs", own.logs)):
        router.add_api_route(
            path,
            handler,
            status_code=200,
            response_class=EventStream,
            dependencies=guards,
            responses={
                204: {"description": "The run has ended, and all was read"},
                **_problems(401, 403, 404, 409, 422, 502, 503),
            },
        )


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    problem = {"content": {"application/json": {"schema": _WHY}}}
    return {status: {"description": HTTPStatus(status).phrase, **problem} for status in statuses}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's schema with nothing to refer to elsewhere."""
    schema = model.model_json_schema()
    schema.pop("$defs", None)
    text = json.dumps(schema).replace('{"$ref": "#/$defs/JsonValue"}', "true")
    return cast("dict[str, Any]", json.loads(text))
