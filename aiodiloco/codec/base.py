"""The codec contract, and the formats there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import torch

from aiodiloco.codec.dense import DenseCodec
from aiodiloco.codec.int8 import Int8Codec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Codec", "codec_for_code", "get_codec", "wire_names"]


class Codec(Protocol):
    """One wire format: tensors to bytes and back.

    Attributes:
        name: What a user calls it, e.g. `"bf16"`.
        code: Identifies the format in chunk headers; never reused for another format.
        block: Elements share state in blocks of this size; chunk boundaries are multiples of it. 1 for dense formats.
        dtype: What it encodes from and decodes to, and what reductions run in.
    """

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def nbytes(self, numel: int) -> int:
        """Return the encoded size of `numel` elements, in bytes."""
        ...

    def encode(self, values: Tensor, out: Tensor) -> None:
        """Write `values` to `out`, never changing `values`."""
        ...

    def decode(self, data: Tensor, out: Tensor) -> None:
        """Write the values encoded in `data` to `out`."""
        ...


# Codes are part of the wire format: append, never reuse.
_CODECS: Final[tuple[Codec, ...]] = (
    DenseCodec("fp32", 1, torch.float32),
    DenseCodec("fp16", 2, torch.float16),
    DenseCodec("bf16", 3, torch.bfloat16),
    Int8Codec(),
    DenseCodec("fp64", 5, torch.float64, dtype=torch.float64),
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


def wire_names() -> tuple[str, ...]:
    """Return the names a user may pass as `wire=`; fp64 is internal, the exact transport of what is not fp32."""
    return tuple(codec.name for codec in _CODECS if codec.dtype == torch.float32)
