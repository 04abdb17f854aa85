"""Entrypoints for the end-to-end tests: what users' replicas do, right and wrong."""

from __future__ import annotations

import torch

from aiodiloco import join, join_sync


def linear(width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def step_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> float:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step))
    loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def weights(model: torch.nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def train(*, rank: int, world_size: int, uri: str, steps: int = 12, wire: str = "bf16") -> list[float]:
    model, optimizer = linear()
    with join_sync(uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=4, wire=wire)
        for step in diloco.steps(steps):
            diloco.step(loss=step_on(model, optimizer, rank, step))
    return weights(model)


async def train_async(*, rank: int, world_size: int, uri: str, steps: int = 12) -> list[float]:
    model, optimizer = linear()
    async with join(uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=4, wire="bf16")
        for step in diloco.steps(steps):
            await diloco.step(loss=step_on(model, optimizer, rank, step))
    return weights(model)


def train_with_odd_shapes(*, rank: int, world_size: int, uri: str, odd_rank: int) -> None:
    model, optimizer = linear(width=5 if rank == odd_rank else 3)
    with join_sync(uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=1)
        diloco.step(loss=step_on(model, optimizer, rank, 0))


def train_with_odd_world_size(*, rank: int, world_size: int, uri: str) -> None:
    train(rank=rank, world_size=world_size + (rank == 1), uri=uri)


def train_as_rank_zero(*, rank: int, world_size: int, uri: str) -> None:
    del rank
    with join_sync(uri, rank=0, world_size=world_size, timeout=30) as replica:
        replica.all_reduce({"w": torch.ones(1)})
