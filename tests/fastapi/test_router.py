"""What `create_router` refuses, and its lifespan."""

from __future__ import annotations

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException

import aiodiloco
from aiodiloco.fastapi import Limits, create_router, lifespan


def _refuse_all() -> None:
    raise HTTPException(403, "not you")


def _router(tmp_path, entrypoints=(("count", "tests.fastapi.entrypoints:count"),), **options):
    executor = aiodiloco.LocalProcessExecutor(root=tmp_path / "executor")
    return create_router(executor, str(tmp_path / "store"), dict(entrypoints), **options)


def _client(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def test_without_auth_there_is_no_router_unless_that_is_said_aloud(tmp_path):
    with pytest.raises(ValueError, match="auth is required"):
        _router(tmp_path)
    assert _router(tmp_path, insecure=True).routes


@pytest.mark.parametrize("auth", [_refuse_all, Depends(_refuse_all)])
async def test_auth_is_a_function_or_a_depends(tmp_path, auth):
    app = FastAPI()
    app.include_router(_router(tmp_path, auth=auth))
    async with app.router.lifespan_context(app), _client(app) as client:
        assert (await client.get("/runs")).status_code == 403
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_shutdown": "leave"}, "on_shutdown"),
        ({"entrypoints": ()}, "entrypoints is empty"),
        ({"limits": lambda: Limits(max_replicas=0)}, "max_replicas"),
        ({"limits": lambda: Limits(max_timeout_s=float("inf"))}, "max_timeout_s"),
        ({"limits": lambda: Limits(gpus="H100")}, "gpus"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        _router(tmp_path, insecure=True, **{k: v() if callable(v) else v for k, v in options.items()})


async def test_without_its_lifespan_the_service_says_what_to_do(tmp_path):
    router = _router(tmp_path, insecure=True)
    app = FastAPI()
    app.include_router(router)
    body = {"entrypoint": "count", "n_replicas": 1, "timeout": 9}
    async with _client(app) as client:
        answer = await client.post("/runs", json=body)
        assert answer.status_code == 503
        assert "lifespan(router)" in answer.json()["detail"]
        assert (await client.get("/readyz")).status_code == 503


async def test_an_app_that_has_the_lifespan_twice_starts_the_service_once(tmp_path):
    router = _router(tmp_path, insecure=True)
    app = FastAPI(lifespan=lifespan(router))
    app.include_router(router)
    async with app.router.lifespan_context(app), _client(app) as client:
        with anyio.fail_after(60):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - over HTTP
                await anyio.sleep(0.01)
    with pytest.raises(TypeError, match="create_router"):
        lifespan(app.router)  # type: ignore[arg-type]
