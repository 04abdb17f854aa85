"""The service that the tests run: `python -m tests.fastapi.service ROOT [cancel|detach] [fd]` from the repository."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

import aiodiloco
from aiodiloco.fastapi import Limits, create_router

TOKEN = "a-token"
ENTRYPOINTS = "tests.fastapi.entrypoints"


def check_token(request: Request) -> None:
    """Let only those in who bring the token, in a header or, as a page does, in the query."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query_params.get("token", "")
    if not secrets.compare_digest(given.encode(), TOKEN.encode()):
        raise HTTPException(401, "who are you?")


def make_app(root: Path, on_shutdown: str) -> FastAPI:
    """Return the app; runs are kept below `root`."""
    executor = aiodiloco.LocalProcessExecutor(
        root=root / "executor", detach=on_shutdown == "detach", grace=1.0, preload=[ENTRYPOINTS]
    )
    entrypoints = {name: f"{ENTRYPOINTS}:{name}" for name in ("count", "hold", "drip")}
    router = create_router(
        executor,
        str(root / "store"),
        entrypoints,
        auth=Depends(check_token),
        limits=Limits(max_replicas=8, max_timeout_s=60, max_runs=12),
        lease=1.5,
        on_shutdown=on_shutdown,  # type: ignore[arg-type]
    )
    app = FastAPI()
    app.include_router(router, prefix="/api")

    @app.get("/open")
    def count_what_is_open() -> dict[str, int]:
        return {"streams": router.service.feeds.num_streams}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(Path(sys.argv[1]), sys.argv[2]), fd=int(sys.argv[3]), log_level="warning")
