"""The model: small, causal, and able to learn."""

from __future__ import annotations

import math

import pytest
import torch

from aiodiloco.demo.model import GPT
from aiodiloco.demo.train import evaluate, new_model, train_step


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT()


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


def test_has_about_half_a_million_parameters(model):
    assert sum(parameter.numel() for parameter in model.parameters()) == 458_752


@pytest.mark.parametrize("length", [1, 17, 64])
def test_gives_logits_for_every_position_of_any_length_up_to_the_context(model, length):
    assert model(_tokens(3, length)).shape == (3, length, 256)


def test_never_sees_the_bytes_it_is_to_predict(model):
    tokens = _tokens(2, 32)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 256
    assert torch.equal(model(tokens)[:, :20], model(changed)[:, :20])
    assert not torch.equal(model(tokens)[:, 20:], model(changed)[:, 20:])


def test_one_layer_knows_the_order_of_the_bytes_before():
    """Without positions, attention sees a set: two bytes swapped before the last would change nothing there."""
    torch.manual_seed(0)
    model = GPT(num_layers=1)
    tokens = _tokens(1, 16)
    swapped = tokens.clone()
    swapped[:, [2, 9]] = swapped[:, [9, 2]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-3)


def test_every_matrix_keeps_the_variance_of_what_it_multiplies(model):
    for name, weight in model.named_parameters():
        if "embedding" not in name:
            assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05), name


def test_starts_near_the_loss_of_a_blind_guess(model):
    assert abs(model.loss(_tokens(8, 64), _tokens(8, 64)).item() - math.log(256)) < 1


def test_is_initialised_alike_for_the_same_seed():
    (first, _), (again, _), (other, _) = new_model(3), new_model(3), new_model(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_learns_a_text_by_heart():
    model, optimizer = new_model(0)
    text = torch.tensor(list(b"def step(self) -> None: self.optimizer.step()"))[None]
    batch = text[:, :-1], text[:, 1:]
    assert evaluate(model, batch) > 4
    for _ in range(60):
        train_step(model, optimizer, batch)
    assert evaluate(model, batch) < 0.05
