"""Small models and runs of several replicas in one event loop."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from aiodiloco.diloco import DiLoCo

_seeding = threading.Lock()  # torch has one random state for all threads of a process


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with _seeding:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def make_batch(rank: int, step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(8, 6, generator=generator)
    return x.to(dtype), (x[:, :3] * 2 + 1).to(dtype)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    x, y = make_batch(rank, step, dtype)
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


class TrainingReplica:
    """One rank's model, inner optimizer and DiLoCo over a given transport."""

    def __init__(self, all_reduce: Any, *, rank: int = 0, lr: float = 0.01, **options: Any) -> None:
        self.rank = rank
        self.model = make_model()
        self.inner = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.diloco = DiLoCo(self.model, self.inner, all_reduce, **options)

    async def train(self, total: int, stop: int | None = None) -> None:
        for step in self.diloco.steps(total):
            loss = train_step(self.model, self.inner, self.rank, step)
            await self.diloco.step(loss=loss, tokens=8)
            if stop is not None and step + 1 == stop:
                return

    def bits(self) -> bytes:
        return b"".join(bytes(p.detach().view(-1).view(torch.uint8).tolist()) for p in self.model.parameters())
