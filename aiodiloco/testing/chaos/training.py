"""The training that chaos strikes: a small real DiLoCo, six rounds of two steps, the same bits every time.

`train` is what replicas run; `final_weights` works out what must come of it, without a store, processes or the network.
"""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import torch
from torch import nn

from aiodiloco.checkpoint import list_rounds
from aiodiloco.collective import owners
from aiodiloco.diloco import NesterovSGD
from aiodiloco.diloco.outer import OuterState
from aiodiloco.replica import join
from aiodiloco.store import open_store
from aiodiloco.testing.chaos.points import HALFWAY, TRAINED
from aiodiloco.testing.chaos.setting import GO, NUM_ROUNDS, WORLD_SIZE, Setting
from aiodiloco.testing.chaos.store import StrikingStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import Tensor

    from aiodiloco.store import Store

__all__ = ["final_weights", "train"]

_SYNC_EVERY = 2
_DEATH_AT_STEP = 7  # of whoever dies first where a point needs that
_CHECKPOINT_EVERY = 2
_CHUNK_BYTES = 4096  # of 24572 in all: each rank owns two chunks
_MIN_REPLICAS = 2
_GRACE_S = 3.0
_OWNER_PATIENCE_S = 1.0  # 10 s in earnest, see `aiodiloco.collective.owners`
_ROUND_BOUND_S = 150.0


async def train(
    rank: int, told: Setting, *, rendezvous_uri: str, world_size: int, incarnation: int
) -> dict[str, str | int]:
    """Train as one replica, be struck where the setting says, and return a digest of the final outer parameters."""
    _show_life(Path(told.directory), rank)
    owners._LEAST_S = _OWNER_PATIENCE_S
    strikes = told.strikes_on(rank)
    async with join(
        StrikingStore(open_store(rendezvous_uri), strikes),
        rank=rank,
        world_size=world_size,
        incarnation=incarnation,
        algorithm="scatter",
        chunk_bytes=_CHUNK_BYTES,
        min_replicas=_MIN_REPLICAS if told.is_elastic else None,
        grace=_GRACE_S,
        timeout=_ROUND_BOUND_S,
    ) as replica:
        body = _Body(is_elastic=told.is_elastic)

        def outer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
            optimizer = NesterovSGD()(parameters)
            optimizer.register_step_post_hook(lambda *_: strikes.at("after", "outer step", str(diloco.round)))
            return optimizer

        diloco = replica.diloco(
            body.model, body.optimizer, sync_every=_SYNC_EVERY, outer=outer, checkpoint_every=_CHECKPOINT_EVERY
        )
        for step in diloco.steps(NUM_ROUNDS * _SYNC_EVERY):
            if step == _DEATH_AT_STEP and told.first_death == rank and incarnation == 0:
                await _wait_for_checkpoint(replica.store)
            if step == NUM_ROUNDS * _SYNC_EVERY // 2:
                await _pass(told, rank, HALFWAY, holds=told.hold == "halfway")
            strikes.at("before", "inner step", str(step))
            body.step(rank, step)
            await diloco.step()
        with diloco.outer_weights():
            final = _digest(dict(body.model.named_parameters()))
        await _pass(told, rank, TRAINED, holds=told.hold == "end" and rank != 0)
        strikes.at("before", "leave", "")
        return {"digest": final, "round": diloco.round, "process": str(replica.transport.member)}


def final_weights(decided: Iterable[Collection[int]], *, is_elastic: bool) -> str:
    """Return a digest of what the outer parameters must be, to the bit, after rounds of these ranks.

    Plain torch: every rank's steps and the outer steps one after the other. The contributions are added in rank order.
    """
    bodies = [_Body(is_elastic=is_elastic) for _ in range(WORLD_SIZE)]
    outers = [OuterState(dict(body.model.named_parameters()), NesterovSGD()) for body in bodies]
    for number, members in enumerate(decided):
        gradients = [_gradient(bodies[rank], outers[rank], rank, number) for rank in sorted(members)]
        mean = {name: _sum([gradient[name] for gradient in gradients]) / len(gradients) for name in gradients[0]}
        for outer in outers:
            outer.step({name: value.clone() for name, value in mean.items()})
    return _digest(outers[0].parameters)


def _gradient(body: _Body, outer: OuterState, rank: int, number: int) -> dict[str, Tensor]:
    for step in range(number * _SYNC_EVERY, (number + 1) * _SYNC_EVERY):
        body.step(rank, step)
    return outer.pseudo_gradient()


def _sum(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


class _Body:
    """Model and inner optimizer: one with state, unless rounds go on without a rank, whose state is then its own."""

    def __init__(self, *, is_elastic: bool) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 614), nn.Tanh(), nn.Linear(614, 3))
        kind = torch.optim.SGD if is_elastic else torch.optim.AdamW
        self.optimizer = kind(self.model.parameters(), lr=0.05)

    def step(self, rank: int, step: int) -> None:
        """Take the inner step of this number as this rank."""
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 * rank + step))
        loss = nn.functional.mse_loss(self.model(x), x[:, :3] * 2 + 1)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _digest(parameters: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for _, tensor in sorted(parameters.items()):
        state.update(tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def _show_life(directory: Path, rank: int) -> None:
    """Hold a lock for as long as this process lives: unlike a pid it cannot be taken for another's."""
    lock = os.open(directory / f"alive-{rank}.{os.getpid()}", os.O_CREAT | os.O_WRONLY, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)


async def _pass(told: Setting, rank: int, sign: str, *, holds: bool) -> None:
    """Say that training has come so far, and wait for the word to go on if it must."""
    directory = Path(told.directory)
    if rank == 0:
        (directory / sign).touch()
    while holds and not (directory / GO).exists():
        await anyio.sleep(0.02)


async def _wait_for_checkpoint(store: Store) -> None:
    while not await list_rounds(store):
        await anyio.sleep(0.02)
