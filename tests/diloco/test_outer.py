"""The outer step against the paper's formulas."""

import functools

import pytest
import torch
from torch import nn

from aiodiloco.diloco.outer import NesterovSGD, OuterState


def state(outer=None, values=(1.0, -2.0), dtype=torch.float32):
    parameter = nn.Parameter(torch.tensor(values, dtype=dtype))
    return parameter, OuterState({"w": parameter}, outer or NesterovSGD())


def move(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.tensor(values))


def test_the_pseudo_gradient_is_outer_minus_local():
    parameter, outer = state()
    move(parameter, [0.5, -1.0])
    assert outer.pseudo_gradient()["w"].tolist() == [0.5, -1.0]


def test_outer_nesterov_sgd_is_torchs_form():
    """buf = μ·buf + Δ; θ -= lr·(Δ + μ·buf), buf starting at the first Δ."""
    parameter, outer = state(NesterovSGD(lr=0.5, momentum=0.8))
    theta, buf = torch.tensor([1.0, -2.0]), torch.zeros(2)
    for delta in (torch.tensor([0.3, 0.1]), torch.tensor([-0.2, 0.4]), torch.tensor([0.05, 0.0])):
        outer.step({"w": delta})
        buf = 0.8 * buf + delta
        theta = theta - 0.5 * (delta + 0.8 * buf)
        torch.testing.assert_close(parameter.data, theta, rtol=1e-6, atol=1e-7)


def test_plain_sgd_of_rate_one_makes_the_mean_of_the_replicas_the_model():
    parameter, outer = state(NesterovSGD(lr=1.0, momentum=0.0))
    outer.step({"w": torch.tensor([0.5, -1.0])})
    assert parameter.tolist() == [0.5, -1.0]


@pytest.mark.parametrize("factory", [torch.optim.Adam, functools.partial(torch.optim.SGD, lr=0.1), torch.optim.RMSprop])
def test_any_torch_optimizer_can_be_the_outer_one(factory):
    parameter, outer = state(factory)
    reference = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = factory([reference])
    for delta in ([0.3, 0.1], [-0.2, 0.4]):
        outer.step({"w": torch.tensor(delta)})
        reference.grad = torch.tensor(delta)
        optimizer.step()
    assert torch.equal(parameter.data, reference.data)


def test_outer_parameters_of_a_half_precision_model_are_float32_and_keep_small_steps():
    parameter, outer = state(NesterovSGD(lr=1.0, momentum=0.0), values=(1.0,), dtype=torch.bfloat16)
    for _ in range(64):
        outer.step({"w": torch.tensor([2.0**-12])})
    assert outer.parameters["w"].dtype == torch.float32
    assert outer.parameters["w"].item() == 1 - 64 * 2.0**-12
    assert parameter.item() == torch.tensor(1 - 64 * 2.0**-12).bfloat16().item()


def test_the_digest_tells_a_single_bit():
    (_, first), (_, second) = state(), state(values=(1.0, -2.0 - 2**-22))
    assert first.digest() == state()[1].digest()
    assert first.digest() != second.digest()


def test_state_of_another_model_is_refused_by_the_parameters_name():
    other = OuterState({"v": nn.Parameter(torch.ones(3))}, NesterovSGD())
    with pytest.raises(ValueError, match=r"parameter 'v' is \(3,\) there and missing here \(2 differ\)"):
        state()[1].load_state_dict(other.state_dict())


def test_an_outer_that_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"torch.optim.Optimizer from parameters, not a <class 'list'>"):
        state(list)


@pytest.mark.parametrize("kwargs", [{"lr": 0}, {"lr": float("nan")}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_outer_settings_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match="outer SGD needs lr > 0 and 0 <= momentum < 1"):
        NesterovSGD(**kwargs)
