"""The dense formats: every element is one float on the wire."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from aiodiloco.codec.buffers import typed
from aiodiloco.codec.checks import check_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DenseCodec"]


@dataclasses.dataclass(frozen=True)
class DenseCodec:
    """Floats as `wire` floats, little-endian, one after the other."""

    name: str
    code: int
    wire: torch.dtype
    dtype: torch.dtype = torch.float32
    block: int = 1

    def nbytes(self, numel: int) -> int:
        """Return the encoded size of `numel` elements, in bytes."""
        return numel * self.wire.itemsize

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write `values` to `out`, rounded to nearest, ties to even."""
        check_tensors(values, out, dtype=self.dtype, nbytes=self.nbytes(values.numel()))
        out.view(self.wire).copy_(values)

    def decode(self, data: Tensor, out: Tensor) -> None:
        """Write the values of `data` to `out`; exact."""
        check_tensors(out, data, dtype=self.dtype, nbytes=self.nbytes(out.numel()))
        out.copy_(typed(data, self.wire))
