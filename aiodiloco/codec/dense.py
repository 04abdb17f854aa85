"""The dense formats: each element is one float on the wire, by itself.

Deterministic across machines: storing a float in fewer bits is defined bit for bit by IEEE 754 (to nearest, ties to
even) except for NaNs, which torch's scalar and vector kernels write differently (bf16: 0x7fc0 and 0xffff). So the
narrow formats have one NaN. Flush-to-zero modes do not reach these conversions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

import torch

from aiodiloco.codec.buffers import typed, typed_out
from aiodiloco.codec.checks import check_tensors
from aiodiloco.codec.pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from aiodiloco.codec.base import Codec

__all__ = ["DenseCodec", "as_values"]

_NAN_BITS: Final[Mapping[torch.dtype, int]] = {torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}


@dataclasses.dataclass(frozen=True)
class DenseCodec:
    """Floats as `wire` floats, little-endian, one after the other.

    Where `wire` is `dtype` nothing is lost, down to the bits of NaNs. Else values are rounded to nearest, ties to
    even; those beyond the largest finite number become infinite (fp16: from 65520 on); infinities and signed zeros
    stay; every NaN becomes the positive quiet NaN (fp16 0x7e00, bf16 0x7fc0). Decoding is exact, so encoding what
    was decoded gives the same bytes.

    Attributes:
        name: See `Codec`.
        code: See `Codec`.
        wire: The dtype on the wire.
        dtype: See `Codec`.
        block: 1: no element knows of another.
    """

    name: str
    code: int
    wire: torch.dtype
    dtype: torch.dtype = torch.float32
    block: int = 1

    def nbytes(self, numel: int) -> int:
        """Return the encoded size of `numel` elements, in bytes."""
        return numel * self.wire.itemsize

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write `values`, (numel,) `dtype`, to `out`, (nbytes(numel),) uint8."""
        check_tensors(values, out, dtype=self.dtype, nbytes=self.nbytes(values.numel()))
        nan_bits = _NAN_BITS.get(self.wire)
        for piece, target in pieces(values, typed_out(out, self.wire)):
            target.copy_(piece)
            # amax is NaN exactly if an element is; it costs a quarter of what isnan().any() does.
            if nan_bits is not None and piece.numel() and math.isnan(piece.amax().item()):
                target.view(torch.int16).masked_fill_(piece.isnan(), nan_bits)

    def decode(self, data: Tensor, out: Tensor) -> None:
        """Write the values in `data`, (nbytes(numel),) uint8, to `out`, (numel,) `dtype`."""
        check_tensors(out, data, dtype=self.dtype, nbytes=self.nbytes(out.numel()))
        for piece, target in pieces(typed(data, self.wire), out):
            target.copy_(piece)


def as_values(codec: Codec, data: Tensor) -> Tensor | None:
    """Return the values in `data`, (nbytes(numel),) uint8, where the wire holds them as they are; else None.

    The result, (numel,) `codec.dtype`, is a view of `data` if that is aligned, else of a copy; never write to it.
    """
    if isinstance(codec, DenseCodec) and codec.wire == codec.dtype:
        return typed(data, codec.dtype)
    return None
