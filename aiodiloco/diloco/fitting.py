"""Whether things fit each other: an optimizer a model, a saved state what it is to be loaded into. Asked before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

__all__ = ["check_has", "check_optimizer", "check_same_groups", "check_same_tensors"]


def check_optimizer(trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Raise TypeError or ValueError unless the optimizer holds parameters of this model, and there are some."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"inner_optimizer must be a torch.optim.Optimizer, not a {type(optimizer).__name__}")
    if not trainable:
        raise ValueError("the model has no parameters with requires_grad: there is nothing to train")
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in trainable.items() if id(p) not in optimized]
    if len(left_out) == len(trainable):
        raise ValueError(
            "the inner optimizer holds none of the model's trainable parameters: make it from model.parameters() of "
            "the same model, after any .to(device) or wrapping"
        )


def check_has(saved: Mapping[str, Any], names: Collection[str], what: str) -> None:
    """Raise ValueError unless a saved state has what it must consist of."""
    if missing := [name for name in names if name not in saved]:
        raise ValueError(f"the saved {what} lacks {', '.join(map(repr, missing))}: was it made by state_dict()?")


def check_same_tensors(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError, naming a tensor, unless `saved` has all of `own`, in the same shapes, and no others."""
    wrong = [name for name in own.keys() | saved.keys() if _shape(saved, name) != _shape(own, name)]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"the saved {what} does not fit this model: parameter {name!r} is {_shape(saved, name)} there and "
            f"{_shape(own, name)} here ({len(wrong)} differ); build the model it was saved from"
        )


def check_same_groups(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, what: str) -> None:
    """Raise ValueError unless a saved optimizer state is of as many parameters, in the same groups."""
    check_has(saved, ("state", "param_groups"), f"state of the {what}")
    there = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in optimizer.param_groups]
    if there != here:
        raise ValueError(
            f"the saved state of the {what} does not fit: its groups hold {there} parameters there and {here} here; "
            "make the optimizer as it was made then"
        )


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    if name not in tensors:
        return "missing"
    value = tensors[name]
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__  # a module's extra state
