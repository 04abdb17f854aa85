"""What must hold of every run, whatever happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aiodiloco.collective.decision import Decision
from aiodiloco.collective.keys import RoundKeys
from aiodiloco.diloco.outer import NesterovSGD
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.testing.simulation.world import World, bits_of, make_model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_invariants"]

_FRAGMENT = 1  # of the first model


async def check_invariants(world: World) -> None:
    """Raise AssertionError, saying which broke, unless the run was sound.

    - It ended: every rank has finished, all with the same outer parameters.
    - No round is lost or repeated: decisions are there for all rounds of the run, in a row.
    - At most one process of a rank is in a round, with what it contributed itself.
    - The outer parameters of every process after every round are the fold of the decided means, recomputed here from
      what the replicas put in, without any code of the all-reduce.
    """
    schedule = world.schedule
    assert set(world.finished) == set(range(schedule.world_size)), (
        f"did not end: {sorted(world.finished)} of {schedule.world_size} finished; errors {world.errors}"
    )
    folded = await _fold(world)
    for finding in world.findings:
        assert finding.bits == folded[finding.round], f"{finding} is not the fold of the decided means"
    assert set(world.finished.values()) == {folded[schedule.num_rounds]}, f"ends differ: {world.finished}"


async def _fold(world: World) -> list[str]:
    """Return the digest of the outer parameters after each round, from 0."""
    model = make_model()
    optimizer = NesterovSGD()(model.parameters())
    folded = [bits_of(model)]
    for number in range(world.schedule.num_rounds):
        for name, parameter in model.named_parameters():
            parameter.grad = (await _mean(world, number))[name]
        optimizer.step()
        folded.append(bits_of(model))
    beyond = RoundKeys(world.schedule.num_rounds, _FRAGMENT)
    assert [key async for key in world.store.list(beyond.decision)] == [], "a round too many was decided"
    return folded


async def _mean(world: World, number: int) -> dict[str, Tensor]:
    keys = RoundKeys(number, _FRAGMENT)
    try:
        decision = Decision.from_json(await world.store.get(keys.decision))
    except KeyNotFoundError:
        raise AssertionError(f"round {number} was lost: it has no decision") from None
    ranks = [member.rank for member in decision.members]
    assert decision.refused is None, f"round {number} was refused: {decision.refused}"
    assert len(ranks) == len(set(ranks)), f"a rank is in round {number} twice: {sorted(map(str, decision.members))}"
    assert len(ranks) >= world.schedule.min_replicas, f"round {number} was decided without a quorum: {ranks}"
    given = [world.contributed[number, str(member)] for member in sorted(decision.members)]
    total = {name: torch.zeros_like(tensor) for name, tensor in given[0].items()}
    for tensors in given:
        for name, tensor in tensors.items():
            total[name] += tensor
    return {name: tensor / len(given) for name, tensor in total.items()}
