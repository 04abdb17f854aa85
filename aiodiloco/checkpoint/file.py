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

_TREE = "aiodiloco"


def write_file(tensors: Mapping[str, Tensor], tree: JSON = None) -> bytes:
    """Return a safetensors file of `tensors`, with `tree` in its header.

    Any safetensors reader opens it. Tensors of any device and layout; ones that share memory are written apart.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    # Not safetensors.torch.save: that takes the way through numpy, which torch's CPU wheel comes without.
    specs = {
        name: safetensors.TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."), shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in plain.items()
    }
    return bytes(safetensors.serialize(specs, metadata={_TREE: json.dumps(tree)}))


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
        tree: JSON = json.loads(header["__metadata__"][_TREE])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as exc:
        raise ChunkError(f"{what} is not a safetensors file of this library: {exc}") from exc
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    return tensors, tree
