"""Tensors to wire bytes and back. Needs torch."""

from aiodiloco.codec.base import Codec, codec_for_code, get_codec, mean_wire, wire_names
from aiodiloco.codec.buffers import as_bytes, as_tensor
from aiodiloco.codec.chunk import (
    HEADER_BYTES,
    REDUCED,
    ChunkHeader,
    chunk_nbytes,
    digest,
    pack_chunk,
    seal_chunk,
    unpack_chunk,
)
from aiodiloco.codec.dense import as_values

__all__ = [
    "HEADER_BYTES",
    "REDUCED",
    "ChunkHeader",
    "Codec",
    "as_bytes",
    "as_tensor",
    "as_values",
    "chunk_nbytes",
    "codec_for_code",
    "digest",
    "get_codec",
    "mean_wire",
    "pack_chunk",
    "seal_chunk",
    "unpack_chunk",
    "wire_names",
]
