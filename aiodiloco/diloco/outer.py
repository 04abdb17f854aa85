"""The outer side of DiLoCo: global parameters, and the optimizer that takes averaged pseudo-gradients as gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.optim import SGD, Optimizer

from aiodiloco.codec import as_bytes, digest
from aiodiloco.diloco.fitting import check_same_groups, check_same_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NesterovSGD", "OuterOptimizerFactory", "OuterState"]

OuterOptimizerFactory: TypeAlias = Callable[[Iterable[torch.Tensor]], Optimizer]
"""Makes the outer optimizer for given parameters: `NesterovSGD(…)`, `torch.optim.Adam`, or a `functools.partial`."""


@dataclasses.dataclass(frozen=True)
class NesterovSGD:
    """Outer optimizer of the DiLoCo paper: SGD with Nesterov momentum in torch's form.

    `buf = momentum · buf + Δ;  θ -= lr · (Δ + momentum · buf)`, with Δ the averaged pseudo-gradient.

    Defaults from DiLoCo (https://arxiv.org/abs/2311.08105). `momentum=0` is plain SGD; with `lr=1` that is averaging.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"outer SGD needs lr > 0 and 0 <= momentum < 1, not lr={self.lr}, momentum={self.momentum}"
            )

    def __call__(self, params: Iterable[Tensor]) -> Optimizer:
        """Return a torch optimizer over `params`."""
        return SGD(params, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)


class OuterState:
    """The parameters all replicas share between rounds, and their optimizer.

    Kept on the CPU in float32 (float64 for float64 models) whatever the model is: an outer step is small next to
    `sync_every` inner ones, and half precision would lose small outer steps.

    Args:
        parameters: The model's trainable parameters by name; read and written in place, on their own device.
        outer: Makes the outer optimizer.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], outer: OuterOptimizerFactory) -> None:
        self._local = dict(parameters)
        self.parameters = {name: _master_copy(p) for name, p in self._local.items()}
        self.optimizer = outer(list(self.parameters.values()))
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"outer must make a torch.optim.Optimizer from parameters, not a {type(self.optimizer)}")

    @torch.no_grad()
    def pseudo_gradient(self) -> dict[str, Tensor]:
        """Return outer minus local parameters: what the inner steps did, with the sign of a gradient.

        DiLoCo, Algorithm 1 (https://arxiv.org/abs/2311.08105). A model of half precision began the round from rounded
        outer parameters, so these are what is subtracted from: the rounding itself must not be learned. New CPU
        tensors; same names, shapes and dtypes as `parameters`.
        """
        return {name: self._as_the_model_had_it(name) - self._on_cpu(name) for name in self.parameters}

    def _as_the_model_had_it(self, name: str) -> Tensor:
        outer = self.parameters[name]
        return outer.to(self._local[name].dtype).to(outer.dtype)

    def _on_cpu(self, name: str) -> Tensor:
        return self._local[name].detach().to("cpu", self.parameters[name].dtype)

    def zeros(self) -> dict[str, Tensor]:
        """Return room for a pseudo-gradient."""
        return {name: torch.zeros_like(outer) for name, outer in self.parameters.items()}

    def step(self, pseudo_gradient: Mapping[str, Tensor]) -> None:
        """Take one outer step along the averaged pseudo-gradient and make it the model's parameters."""
        for name, outer in self.parameters.items():
            outer.grad = pseudo_gradient[name]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.write_to_model()

    @torch.no_grad()
    def write_to_model(self) -> None:
        """Copy the outer parameters into the model's."""
        for name, outer in self.parameters.items():
            self._local[name].copy_(outer)

    @torch.no_grad()
    def local_copy(self) -> dict[str, Tensor]:
        """Return copies of the model's own parameters, on their own device."""
        return {name: p.detach().clone() for name, p in self._local.items()}

    @torch.no_grad()
    def restore_local(self, copies: Mapping[str, Tensor]) -> None:
        """Put back what `local_copy` returned."""
        for name, copy in copies.items():
            self._local[name].copy_(copy)

    def digest(self) -> bytes:
        """Return 8 bytes that two replicas share when their outer parameters and momenta are the same to the bit."""
        tensors = list(self.parameters.values())
        for parameter in self.parameters.values():
            state = self.optimizer.state.get(parameter, {})
            tensors += [value for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
        return digest(*(as_bytes(t.detach().reshape(-1).contiguous().view(torch.uint8)) for t in tensors))

    def settings(self) -> str:
        """Return the optimizer's class and hyperparameters as text, the same on replicas that step alike."""
        groups = [{k: v for k, v in sorted(group.items()) if k != "params"} for group in self.optimizer.param_groups]
        return f"{type(self.optimizer).__name__}{groups}"

    def state_dict(self) -> dict[str, Any]:
        """Return outer parameters and optimizer state."""
        return {"parameters": dict(self.parameters), "optimizer": self.optimizer.state_dict()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError, naming a parameter, unless `state` is of this model and a like optimizer."""
        check_same_tensors(state["parameters"], self.parameters, "outer state")
        check_same_groups(state["optimizer"], self.optimizer, "outer optimizer")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned. Raises ValueError when it is of another model."""
        self.check_state(state)
        for name, outer in self.parameters.items():
            outer.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _master_copy(parameter: nn.Parameter) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to("cpu", dtype, copy=True).contiguous()
