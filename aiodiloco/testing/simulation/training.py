"""What simulated replicas do: train a small model, and leave a note of what they gave and what they held."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio
import torch

from aiodiloco.codec import as_bytes, digest
from aiodiloco.replica import join

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from aiodiloco.collective import AllReduceReport, ObjectStoreAllReduce
    from aiodiloco.testing.simulation.schedule import Schedule

__all__ = ["Finding", "Notes", "bits_of", "make_model", "train"]

_ROUND_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a process held after a round."""

    process: str
    round: int
    bits: str


@dataclasses.dataclass
class Notes:
    """What the replicas of a run left.

    Attributes:
        findings: The outer parameters of every process after every round it saw.
        contributed: (round, rank-incarnation) -> what it gave to the mean, before any wire format.
        finished: Rank -> digest of its outer parameters at the end.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    contributed: dict[tuple[int, str], dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    finished: dict[int, str] = dataclasses.field(default_factory=dict)


async def train(
    notes: Notes,
    schedule: Schedule,
    uri: str,
    *,
    rank: int,
    name: str,
    incarnation: int | None = None,
    on_joined: Callable[[], object] = lambda: None,
) -> None:
    """Be one replica of the run, to its end.

    Args:
        notes: Added to.
        schedule: The run's.
        uri: Where replicas meet.
        rank: Which.
        name: Of this process.
        incarnation: As its driver said.
        on_joined: Called once it has a place in the run.
    """
    async with join(
        uri,
        rank=rank,
        world_size=schedule.world_size,
        timeout=_ROUND_TIMEOUT_S,
        min_replicas=schedule.min_replicas,
        algorithm=schedule.algorithm,
        grace=3 * max(schedule.step_s),
        incarnation=incarnation,
    ) as replica:
        on_joined()
        replica.transport = _Noting(replica.transport, notes)  # type: ignore[assignment]
        model = make_model()
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        diloco = replica.diloco(
            model, inner, sync_every=schedule.sync_every, checkpoint_every=schedule.checkpoint_every
        )
        seen = diloco.round
        for step in diloco.steps(schedule.total_steps):
            _train_step(model, inner, rank, step)
            await anyio.sleep(schedule.step_s[rank])
            await diloco.step()
            if diloco.round != seen:
                seen = diloco.round
                notes.findings.append(Finding(name, seen, bits_of(model)))
        with diloco.outer_weights():
            notes.finished[rank] = bits_of(model)


class _Noting:
    """The all-reduce itself, and a note of what was given to it."""

    def __init__(self, transport: ObjectStoreAllReduce, notes: Notes) -> None:
        self._transport = transport
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def all_reduce(self, tensors: Mapping[str, Tensor], *, round: int, **options: Any) -> AllReduceReport:  # noqa: A002
        given = {name: tensor.clone() for name, tensor in tensors.items()}
        self._notes.contributed[round, str(self._transport.member)] = given
        return await self._transport.all_reduce(tensors, round=round, **options)


def make_model() -> torch.nn.Module:
    """Return the model, the same on every replica."""
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) + number)
    return model


def _train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """Take an inner step that follows from rank and number alone."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(4, 5, generator=generator)
    optimizer.zero_grad()
    (model(x) - x[:, :3]).square().mean().backward()
    optimizer.step()


def bits_of(model: torch.nn.Module) -> str:
    """Return a digest of the model's parameters."""
    flat = [as_bytes(p.detach().reshape(-1).contiguous().view(torch.uint8)) for p in model.parameters()]
    return digest(*flat).hex()
