"""The outer side of DiLoCo: global parameters, and the optimizer that takes averaged pseudo-gradients as gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.optim import SGD, Optimizer

from aiodiloco.codec import as_bytes, digest

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

        DiLoCo, Algorithm 1 (https://arxiv.org/abs/2311.08105). New CPU tensors; same names, shapes and dtypes as
        `parameters`.
        """
        return {name: outer - self._local[name].to("cpu", outer.dtype) for name, outer in self.parameters.items()}

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
        """Return 8 bytes that are the same on two replicas when their outer parameters are the same to the bit."""
        flat = (self.parameters[name].detach().reshape(-1) for name in sorted(self.parameters))
        return digest(*(as_bytes(p.view(torch.uint8)) for p in flat))

    def state_dict(self) -> dict[str, Any]:
        """Return outer parameters and optimizer state."""
        return {"parameters": dict(self.parameters), "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned. Raises ValueError when it is of another model."""
        saved: Mapping[str, Tensor] = state["parameters"]
        wrong = [n for n in self.parameters.keys() | saved.keys() if _shape(saved, n) != _shape(self.parameters, n)]
        if wrong:
            name = min(wrong)
            raise ValueError(
                f"the saved outer state does not fit this model: parameter {name!r} is {_shape(saved, name)} there and "
                f"{_shape(self.parameters, name)} here ({len(wrong)} differ); build the model it was saved from"
            )
        for name, outer in self.parameters.items():
            outer.copy_(saved[name])
        self.optimizer.load_state_dict(state["optimizer"])


def _master_copy(parameter: nn.Parameter) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to("cpu", dtype, copy=True).contiguous()


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"
