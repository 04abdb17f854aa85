"""What the demo's replicas run: the code to read first, and to start your own training from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from aiodiloco import NesterovSGD, join_sync
from aiodiloco.demo.data import ReplicaData
from aiodiloco.demo.model import GPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from aiodiloco.records import JSON

__all__ = ["digest_of", "evaluate", "new_model", "train_alone", "train_step", "train_with_diloco"]

_GRACE_S = 3.0  # for the late, before a round goes on without them
_CHECKPOINT_EVERY = 4  # rounds


def train_with_diloco(
    *,
    rank: int,
    world_size: int,
    rendezvous_uri: str,
    incarnation: int = 0,
    steps: int,
    sync_every: int,
    wire: str,
    seed: int,
    evaluate_at: Sequence[int],
    min_replicas: int | None = None,
    evaluators: Sequence[int] = (0,),
) -> JSON:
    """Train as one of `world_size` replicas; return the outer weights' held-out loss and what the rounds cost.

    With `min_replicas` the others go on when a replica dies. It is started again, as the next `incarnation`, and
    continues from the latest checkpoint and the rounds since.
    """
    model, optimizer = new_model(seed)
    data = ReplicaData(rank=rank, world_size=world_size, seed=seed, context=model.context)
    with join_sync(
        rendezvous_uri,
        rank=rank,
        world_size=world_size,
        min_replicas=min_replicas,
        grace=_GRACE_S,
        incarnation=incarnation,
    ) as replica:
        diloco = replica.diloco(
            model,
            optimizer,
            sync_every=sync_every,
            outer=NesterovSGD(lr=0.7, momentum=0.9),
            wire=wire,
            checkpoint_every=_CHECKPOINT_EVERY,
        )
        for step in diloco.steps(steps):
            loss = train_step(model, optimizer, data.batch(step))
            diloco.step(loss=loss, tokens=data.tokens_per_step)  # every sync_every-th call meets the other replicas
            if rank in evaluators and diloco.inner_step in evaluate_at:
                with diloco.outer_weights():
                    replica.report(diloco.inner_step, held_out_loss=evaluate(model, data.held_out))
        with diloco.outer_weights():
            held_out_loss, digest = evaluate(model, data.held_out), digest_of(model)
    return {
        "held_out_loss": held_out_loss,
        "weights": digest,
        "incarnation": incarnation,
        "tokens_per_step": data.tokens_per_step,
        "rounds": diloco.round,
        "bytes_sent": diloco.bytes_sent,
        "bytes_received": diloco.bytes_received,
    }


def train_alone(
    *, rank: int, num_shards: int, rendezvous_uri: str, steps: int, seed: int, evaluate_at: Sequence[int]
) -> JSON:
    """Train as rank 0 of `num_shards` replicas would, with its weights and its data, but never meet the others."""
    model, optimizer = new_model(seed)
    data = ReplicaData(rank=rank, world_size=num_shards, seed=seed, context=model.context)
    with join_sync(rendezvous_uri, rank=rank, world_size=1) as replica:
        for step in range(1, steps + 1):
            loss = train_step(model, optimizer, data.batch(step - 1))
            replica.report(step, loss=loss, tokens=step * data.tokens_per_step)
            if step in evaluate_at:
                replica.report(step, held_out_loss=evaluate(model, data.held_out))
    return {"held_out_loss": evaluate(model, data.held_out)}


def new_model(seed: int) -> tuple[GPT, Optimizer]:
    """Return the model, initialised alike for the same seed, and its inner optimizer."""
    torch.set_num_threads(1)  # so small a model only gets slower with more
    torch.manual_seed(seed)
    model = GPT()
    # 0.95, as is usual for language models: what came before an outer step should be forgotten soon after it.
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)


def train_step(model: GPT, optimizer: Optimizer, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Take one inner step and return its loss, a 0-d tensor."""
    loss = model.loss(*batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: GPT, batch: tuple[Tensor, Tensor]) -> float:
    """Return the model's loss on a batch, without learning from it."""
    return model.loss(*batch).item()


def digest_of(model: nn.Module) -> str:
    """Return the SHA-256 of all weights: equal where every bit is."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()
