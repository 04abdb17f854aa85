"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from aiodiloco.records import JSON
    from aiodiloco.store import Buffer

__all__ = ["read_file", "write_file"]

_HEADER = "aiodiloco"  # one entry: the format writes several in any order, and equal tensors must give equal bytes
_AS_REAL = (torch.complex32, torch.complex128)  # which the format does not know


def write_file(tensors: Mapping[str, Tensor], tree: JSON = None) -> bytes:
    """Return a safetensors file of `tensors`, with `tree` in its header.

    Any safetensors reader opens it. Tensors of any device and layout; ones that share memory are written apart.
    Complex ones of a width that the format lacks are written as real ones with a last dimension of 2.
    """
    plain = {
        name: tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous() for name, tensor in tensors.items()
    }
    as_complex = [name for name, tensor in plain.items() if tensor.dtype in _AS_REAL]
    plain |= {name: torch.view_as_real(plain[name]) for name in as_complex}
    # Not safetensors.torch.save: that takes the way through numpy, which torch's CPU wheel comes without.
    specs = {
        name: safetensors.TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."), shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in plain.items()
    }
    return bytes(safetensors.serialize(specs, metadata={_HEADER: json.dumps([tree, as_complex])}))


def read_file(data: Buffer, what: str) -> tuple[dict[str, Tensor], JSON]:
    """Return the tensors and the tree of a file that `write_file` made.

    Raises:
        ChunkError: it is no such file; the message says `what` it should be.
    """
    content = bytes(data)
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}
        tree, as_complex = json.loads(header["__metadata__"][_HEADER])
        tensors |= {name: torch.view_as_complex(tensors[name]) for name in as_complex}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as exc:
        raise ChunkError(f"{what} is not a safetensors file of this library: {exc}") from exc
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    return tensors, tree
