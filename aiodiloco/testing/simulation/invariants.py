"""What must hold of the training of every run, whatever happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aiodiloco.collective.decision import Decision
from aiodiloco.collective.keys import RoundKeys
from aiodiloco.diloco.outer import NesterovSGD
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.testing.simulation.training import bits_of, make_model

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.testing.simulation.world import World

__all__ = ["check_by_hand", "check_training"]

_FRAGMENT = 1  # of the first model


async def check_by_hand(world: World) -> None:
    """Raise AssertionError, saying which broke, unless a run without a driver was sound.

    - It ended: every rank has finished.
    - What `check_training` says.
    """
    size = world.schedule.world_size
    assert set(world.notes.finished) == set(range(size)), (
        f"did not end: {sorted(world.notes.finished)} of {size} finished; errors {world.errors}"
    )
    await check_training(world)


async def check_training(world: World) -> None:
    """Raise AssertionError, saying which broke, unless the training was sound.

    - No round is lost or repeated: decisions are there in a row from the first on; for all rounds of the run, and no
      more, where a rank has finished.
    - At most one process of a rank is in a round, with what it contributed itself.
    - The outer parameters of every process after every round are the fold of the decided means, recomputed here from
      what the replicas put in, without any code of the all-reduce. So all that finish have the same in the end.
    """
    schedule, notes = world.schedule, world.notes
    decisions = await _decisions(world)
    if notes.finished:
        assert len(decisions) >= schedule.num_rounds, f"a rank finished, and round {len(decisions)} has no decision"
    assert len(decisions) <= schedule.num_rounds, "a round too many was decided"
    folded = _fold(world, decisions)
    for finding in notes.findings:
        assert finding.round < len(folded), f"{finding} is of a round that was never decided"
        assert finding.bits == folded[finding.round], f"{finding} is not the fold of the decided means"
    ends = {rank: bits for rank, bits in notes.finished.items() if bits != folded[schedule.num_rounds]}
    assert not ends, f"ends are not the fold of the decided means: {ends}"


async def _decisions(world: World) -> list[Decision]:
    """Return the decisions there are, up to one too many."""
    found: list[Decision] = []
    for number in range(world.schedule.num_rounds + 1):
        try:
            decision = Decision.from_json(await world.store.get(RoundKeys(number, _FRAGMENT).decision))
        except KeyNotFoundError:
            continue
        assert len(found) == number, f"round {len(found)} was lost: it has no decision, and round {number} has"
        found.append(decision)
    return found


def _fold(world: World, decisions: list[Decision]) -> list[str]:
    """Return the digest of the outer parameters after each round, from 0."""
    model = make_model()
    optimizer = NesterovSGD()(model.parameters())
    folded = [bits_of(model)]
    for number, decision in enumerate(decisions):
        mean = _mean(world, number, decision)
        for name, parameter in model.named_parameters():
            parameter.grad = mean[name]
        optimizer.step()
        folded.append(bits_of(model))
    return folded


def _mean(world: World, number: int, decision: Decision) -> dict[str, Tensor]:
    ranks = [member.rank for member in decision.members]
    assert decision.refused is None, f"round {number} was refused: {decision.refused}"
    assert len(ranks) == len(set(ranks)), f"a rank is in round {number} twice: {sorted(map(str, decision.members))}"
    assert len(ranks) >= world.schedule.min_replicas, f"round {number} was decided without a quorum: {ranks}"
    given = [world.notes.contributed[number, str(member)] for member in sorted(decision.members)]
    total = {name: torch.zeros_like(tensor) for name, tensor in given[0].items()}
    for tensors in given:
        for name, tensor in tensors.items():
            total[name] += tensor
    return {name: tensor / len(given) for name, tensor in total.items()}
