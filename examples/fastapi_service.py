"""Runs behind HTTP: `python examples/fastapi_service.py`, then open http://127.0.0.1:8000/page?token=secret

or, from a shell:

    curl -H 'authorization: Bearer secret' -H 'content-type: application/json' http://127.0.0.1:8000/runs \
         -d '{"entrypoint": "train", "n_replicas": 4, "timeout": 600, "args": {"steps": 2000}}'

Needs `pip install 'aiodiloco[fastapi,torch]' uvicorn`. The token is that of the environment variable SERVICE_TOKEN.
"""

from __future__ import annotations

import os
import secrets
import sys
import time

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

import aiodiloco
from aiodiloco.fastapi import Limits, create_router

TOKEN = os.environ.get("SERVICE_TOKEN", "secret")


def train(*, rank: int, world_size: int, rendezvous_uri: str, steps: int = 1000, step_s: float = 0.0) -> float:
    """Fit a small network, as one of `world_size` replicas; return the last loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.tensor(0.0)
    with aiodiloco.join_sync(rendezvous_uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=50)
        for step in diloco.steps(steps):
            x = torch.randn(64, 32, generator=torch.Generator().manual_seed(rank * steps + step))
            loss = (model(x) - x.sin().sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(step_s)  # as if the model were larger
            diloco.step(loss=loss, tokens=64)
    return loss.item()


def check_token(request: Request) -> None:
    """Let only those in who bring the token: in a header, or, as the page does, in the address."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query_params.get("token", "")
    if not secrets.compare_digest(given.encode(), TOKEN.encode()):
        raise HTTPException(401, "bring the token", headers={"www-authenticate": "Bearer"})


def make_app(store: str = "./service-store") -> FastAPI:
    """Return the app."""
    router = create_router(
        aiodiloco.LocalProcessExecutor(),
        store,
        {"train": train},
        auth=Depends(check_token),
        limits=Limits(max_replicas=8, max_timeout_s=3600),
    )
    app = FastAPI(title="DiLoCo runs")
    app.include_router(router)
    return app


if __name__ == "__main__":
    uvicorn.run(make_app(*sys.argv[2:3]), port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000, log_level="warning")
