"""The codec contract, and the formats there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch

from aiodiloco.codec.dense import DenseCodec
from aiodiloco.codec.e3m0 import E3M0Codec
from aiodiloco.codec.int8 import Int8Codec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Codec", "codec_for_code", "get_codec", "mean_wire", "wire_names"]


class Codec(Protocol):
    """One wire format: tensors to bytes and back. Stateless: any number of threads may use one codec at once.

    Equal values give equal bytes on every machine, because ranks compare and repeat each other's work: the result
    must not depend on the vector width, on fused multiply-add, on the number of threads or on flush-to-zero modes.
    Encoding what was decoded gives the same bytes. What becomes of NaN and infinity is for each format to define; a
    NaN never becomes a number. `aiodiloco.testing.codecs.CodecTests` checks all of this.
    """

    @property
    def name(self) -> str:
        """What a user calls it, e.g. `"bf16"`."""
        ...

    @property
    def code(self) -> int:
        """The number that identifies the format in chunk headers, 1 .. 65535; never reused for another format."""
        ...

    @property
    def block(self) -> int:
        """How many elements share state; chunk boundaries are multiples of it. 1 for dense formats."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it encodes from and decodes to, and what reductions run in: float32, for `"fp64"` float64."""
        ...

    def nbytes(self, numel: int) -> int:
        """Return the encoded size of `numel` elements, in bytes."""
        ...

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write the encoded `values` to `out`; `values` stay as they are.

        Args:
            values: (numel,) `dtype`, contiguous, on the CPU.
            out: (nbytes(numel),) uint8, contiguous, on the CPU, aligned to 8 bytes. What it held does not matter.

        Raises:
            ValueError: a tensor is not like that.
        """
        ...

    def decode(self, data: Tensor, out: Tensor) -> None:
        """Write the values encoded in `data` to `out`.

        Args:
            data: (nbytes(numel),) uint8, contiguous, on the CPU. Aligned to 8 bytes it is read in place.
            out: (numel,) `dtype`, contiguous, on the CPU. What it held does not matter.

        Raises:
            ValueError: a tensor is not like that.
        """
        ...


# Codes are part of the wire format: take a new one for a new format, also for a changed one.
_CODECS: Final[tuple[Codec, ...]] = (
    DenseCodec("fp32", 1, torch.float32),
    DenseCodec("fp16", 2, torch.float16),
    DenseCodec("bf16", 3, torch.bfloat16),
    Int8Codec(),
    DenseCodec("fp64", 5, torch.float64, dtype=torch.float64),
    E3M0Codec(),
)


def get_codec(name: str) -> Codec:
    """Return the codec called `name`. Raises ValueError listing the known names."""
    for codec in _CODECS:
        if codec.name == name:
            return codec
    raise ValueError(f"no wire format is called {name!r}; known: {', '.join(codec.name for codec in _CODECS)}")


def codec_for_code(code: int) -> Codec | None:
    """Return the codec with this code in chunk headers, or None if there is none."""
    return next((codec for codec in _CODECS if codec.code == code), None)


def mean_wire(name: str) -> str:
    """Return the wire format of the mean of contributions in format `name`: the same, but int8 for e3m0.

    The errors of N contributions average out; what the mean then loses, all replicas lose alike. With e3m0 that second
    loss was most of the whole (docs/log.md), so its mean takes 8 bits instead of 4. int8 and all wider formats lose
    too little for it to matter.
    """
    return "int8" if name == "e3m0" else name


def wire_names() -> tuple[str, ...]:
    """Return the names a user may pass as `wire=`; fp64 is internal, the exact transport of what is not fp32."""
    return tuple(codec.name for codec in _CODECS if codec.dtype == torch.float32)
