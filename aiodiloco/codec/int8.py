"""int8 with one fp32 scale per block."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from aiodiloco.codec.buffers import typed
from aiodiloco.codec.checks import check_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Int8Codec"]

_PIECE = 32768


@dataclasses.dataclass(frozen=True)
class Int8Codec:
    """Blocks of 128 elements, each `scale * q` with q in -127..127."""

    name: str = "int8"
    code: int = 4
    block: int = 128
    dtype: torch.dtype = torch.float32

    def nbytes(self, numel: int) -> int:
        """Return the encoded size of `numel` elements, in bytes."""
        return 4 * -(-numel // self.block) + numel

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write the scales of all blocks, then q of all elements."""
        numel = values.numel()
        check_tensors(values, out, dtype=self.dtype, nbytes=self.nbytes(numel))
        num_blocks = -(-numel // self.block)
        scales, q = out[: 4 * num_blocks].view(torch.float32), out[4 * num_blocks :].view(torch.int8)
        for start in range(0, numel, _PIECE):
            piece = values[start : start + _PIECE]
            first, rows = start // self.block, -(-piece.numel() // self.block)
            scratch = torch.zeros(rows * self.block)
            scratch[: piece.numel()] = piece
            blocks = scratch.view(rows, self.block)
            scale = blocks.abs().amax(dim=1).div_(127)
            scale.view(torch.int32).bitwise_and_(-128)
            scale.masked_fill_(scale < 2.0**-120, 0.0)
            bad = ~scale.isfinite()
            scale.masked_fill_(bad, torch.nan)
            blocks.masked_fill_((bad | (scale == 0))[:, None], 0)
            blocks.mul_(scale.reciprocal().masked_fill_(bad | (scale == 0), 0)[:, None]).round_()
            scales[first : first + rows] = scale
            q[start : start + piece.numel()].copy_(scratch[: piece.numel()])

    def decode(self, data: Tensor, out: Tensor) -> None:
        """Write `scale * q` to `out`; the products are exact."""
        numel = out.numel()
        check_tensors(out, data, dtype=self.dtype, nbytes=self.nbytes(numel))
        num_blocks = -(-numel // self.block)
        scales, q = typed(data[: 4 * num_blocks], torch.float32), data[4 * num_blocks :].view(torch.int8)
        whole = numel - numel % self.block
        rows = whole // self.block
        out.copy_(q)
        out[:whole].view(rows, self.block).mul_(scales[:rows, None])
        if whole < numel:
            out[whole:].mul_(scales[rows])
