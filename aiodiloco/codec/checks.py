"""What every codec asks of the tensors it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_tensors"]


def check_tensors(values: Tensor, data: Tensor, *, dtype: torch.dtype, nbytes: int) -> None:
    """Raise ValueError unless both are contiguous on the CPU: `values` (numel,) `dtype`, `data` (nbytes,) uint8."""
    _check("values", values, dtype, values.numel())
    _check("the encoded data", data, torch.uint8, nbytes)


def _check(what: str, tensor: Tensor, dtype: torch.dtype, numel: int) -> None:
    if tensor.shape != (numel,) or tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"{what} must be a contiguous {dtype} CPU tensor of shape ({numel},), "
            f"not {tensor.dtype} of shape {tuple(tensor.shape)} and stride {tensor.stride()} on {tensor.device}"
        )
