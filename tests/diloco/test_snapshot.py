"""A replica's training as a checkpoint holds it: refused whole, or taken whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from aiodiloco.checkpoint import Loaded
from aiodiloco.diloco import Checkpoints, DiLoCo
from aiodiloco.diloco.outer import NesterovSGD, OuterState
from aiodiloco.diloco.snapshot import restore_snapshot, take_snapshot
from tests.diloco.models import make_model


class Position:
    """Something of the training loop's own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        if state_dict["value"] == "unloadable":
            raise RuntimeError("of another data set")
        self.value = state_dict["value"]


class Training:
    """A model with a frozen layer and a buffer, and its optimizers."""

    def __init__(self, fill: float) -> None:
        self.model = make_model()
        self.model[0].bias.requires_grad_(False)
        self.model.register_buffer("count", torch.zeros(3))
        self.inner = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        with torch.no_grad():
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                tensor.fill_(fill)
        sum(p.sum() for p in self.model.parameters()).backward()
        self.inner.step()
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.outer = OuterState(trainable, NesterovSGD())
        self.position = Position(fill)

    def state(self) -> str:
        return str((self.model.state_dict(), self.inner.state_dict(), self.outer.state_dict(), self.position.value))

    def take(self) -> Any:
        parts = self.model, self.inner, self.outer, {"data": self.position}
        taken = take_snapshot(*parts, model_number=0, round=3, inner_step=30, tokens=77)
        return copy.deepcopy(
            Loaded(taken.round, taken.inner_step, taken.outer, taken.model, taken.frozen, taken.replica)
        )

    def restore(self, loaded: Loaded) -> None:
        restore_snapshot(loaded, self.model, self.inner, self.outer, {"data": self.position})


def test_what_was_taken_is_restored() -> None:
    source, target = Training(2.0), Training(1.0)
    target.restore(source.take())
    assert target.state() == source.state()


def spoil_buffer(loaded: Any) -> None:
    loaded.model["buffers"]["count"] = torch.zeros(4)


def spoil_frozen(loaded: Any) -> None:
    loaded.frozen["0.bias"] = torch.zeros(1)


def spoil_own_buffer(loaded: Any) -> None:
    loaded.replica["buffers"]["count"] = torch.zeros(4)


def spoil_inner(loaded: Any) -> None:
    loaded.replica["inner_optimizer"]["param_groups"].append({"params": []})


def spoil_outer(loaded: Any) -> None:
    loaded.outer["optimizer"]["param_groups"][0]["params"].append(9)


def spoil_random(loaded: Any) -> None:
    loaded.replica["rng"] = torch.zeros(3, dtype=torch.uint8)


def spoil_users(loaded: Any) -> None:
    loaded.replica["state"]["data"]["value"] = "unloadable"


@pytest.mark.parametrize(
    "spoil",
    [spoil_buffer, spoil_frozen, spoil_own_buffer, spoil_inner, spoil_outer, spoil_random, spoil_users],
)
def test_what_does_not_fit_is_refused_before_anything_is_changed(spoil: Any) -> None:
    """Half of a checkpoint beside half of a fresh model would train on without a word."""
    loaded, target = Training(2.0).take(), Training(1.0)
    spoil(loaded)
    before, random = target.state(), torch.get_rng_state()
    with pytest.raises((ValueError, RuntimeError), match=r"does not fit|another version of torch|another data set"):
        target.restore(loaded)
    assert target.state() == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"data": Position({1, 2})}, r"replica\.state\.data\.value is a set, which a checkpoint cannot hold"),
        ({"data": 5}, r"state\['data'\] is a int: what a checkpoint keeps needs state_dict"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_before_training(state: dict[str, Any], match: str) -> None:
    """Not hours later, at the first checkpoint."""

    async def save(share: Any) -> None:
        raise AssertionError(share)

    async def load() -> Loaded:
        raise AssertionError

    model = make_model()
    inner = torch.optim.AdamW(model.parameters())
    transport: Any = None
    with pytest.raises(TypeError, match=match):
        DiLoCo(model, inner, transport, sync_every=5, checkpoints=Checkpoints(10, 0, 0, save, load, state))
