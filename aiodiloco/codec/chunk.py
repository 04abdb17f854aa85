"""Self-describing chunks: a 64-byte header, then the encoded values, under one digest."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import TYPE_CHECKING, Final

import torch
import xxhash

from aiodiloco.codec.base import codec_for_code, get_codec
from aiodiloco.codec.buffers import as_bytes, as_tensor
from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.codec.base import Codec
    from aiodiloco.store import Buffer

__all__ = ["HEADER_BYTES", "REDUCED", "ChunkHeader", "chunk_nbytes", "digest", "pack_chunk", "unpack_chunk"]

HEADER_BYTES: Final = 64
REDUCED: Final = 0xFFFFFFFF
"""The rank in the header of a reduced chunk."""

_MAGIC: Final = b"DLCK"
_VERSION: Final = 1
_MAX_U32: Final = 0xFFFFFFFF
# magic, version, codec code, numel, body bytes, chunk, rank, weight, payload, zeros; the digest of these and the body follows
_FIELDS: Final = struct.Struct("<4sHHQQIId8s8x")
_DIGEST_AT: Final = _FIELDS.size


@dataclasses.dataclass(frozen=True)
class ChunkHeader:
    """What a chunk is.

    Attributes:
        codec: Name of the wire format.
        numel: Number of elements.
        chunk: Index in the chunk grid.
        rank: Who contributed it; `REDUCED` for a reduced chunk.
        weight: Weight of the contribution, finite and >= 0.
        payload: 8 bytes: digest of the payload spec this chunk belongs to.
    """

    codec: str
    numel: int
    chunk: int
    rank: int
    weight: float = 1.0
    payload: bytes = bytes(8)

    def __post_init__(self) -> None:
        get_codec(self.codec)
        if not 0 <= self.numel < 2**64:
            raise ValueError(f"numel must be 0 .. 2**64 - 1, not {self.numel}")
        if not 0 <= self.chunk <= _MAX_U32 or not 0 <= self.rank <= _MAX_U32:
            raise ValueError(f"chunk and rank must be 0 .. 2**32 - 1, not {self.chunk} and {self.rank}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be finite and >= 0, not {self.weight}")
        if len(self.payload) != 8:
            raise ValueError(f"payload must be 8 bytes, not {len(self.payload)}")


def digest(*parts: Buffer) -> bytes:
    """Return the xxh3_64 of `parts` one after the other, 8 bytes big-endian."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


def chunk_nbytes(codec: Codec, numel: int) -> int:
    """Return the size of a chunk of `numel` elements, header included, in bytes."""
    return HEADER_BYTES + codec.nbytes(numel)


def pack_chunk(header: ChunkHeader, values: Tensor) -> memoryview:
    """Return the chunk of `values`, encoded once, straight behind its header in one new buffer."""
    codec = get_codec(header.codec)
    if values.shape != (header.numel,):
        raise ValueError(f"values have shape {tuple(values.shape)}, the header says ({header.numel},)")
    buffer = torch.empty(chunk_nbytes(codec, header.numel), dtype=torch.uint8)
    codec.encode(values, buffer[HEADER_BYTES:])
    data = as_bytes(buffer)
    body_bytes = len(data) - HEADER_BYTES
    _FIELDS.pack_into(
        data,
        0,
        _MAGIC,
        _VERSION,
        codec.code,
        header.numel,
        body_bytes,
        header.chunk,
        header.rank,
        header.weight,
        header.payload,
    )
    data[_DIGEST_AT:HEADER_BYTES] = digest(data[:_DIGEST_AT], data[HEADER_BYTES:])
    return data


def unpack_chunk(data: memoryview) -> tuple[ChunkHeader, Tensor]:
    """Return the header of a chunk and its body, (codec.nbytes(numel),) uint8, a view of `data`."""
    if len(data) < HEADER_BYTES:
        raise ChunkError(f"chunk of {len(data)} bytes is truncated: the header alone has {HEADER_BYTES}")
    magic, version, code, numel, body_bytes, chunk, rank, weight, payload = _FIELDS.unpack_from(data)
    if magic != _MAGIC:
        raise ChunkError(f"not a chunk: it starts with {magic!r}, not {_MAGIC!r}")
    if version != _VERSION:
        raise ChunkError(f"chunk format version {version} is not the version {_VERSION} that this release reads")
    if len(data) != HEADER_BYTES + body_bytes:
        raise ChunkError(f"chunk has {len(data)} bytes, its header says {HEADER_BYTES + body_bytes}")
    found, expected = digest(data[:_DIGEST_AT], data[HEADER_BYTES:]), bytes(data[_DIGEST_AT:HEADER_BYTES])
    if found != expected:
        raise ChunkError(f"chunk is corrupted: its digest is {found.hex()}, its header says {expected.hex()}")
    codec = codec_for_code(code)
    if codec is None:
        raise ChunkError(f"chunk has the unknown wire format code {code}")
    if codec.nbytes(numel) != body_bytes:
        raise ChunkError(f"chunk says {numel} {codec.name} elements in {body_bytes} bytes, not {codec.nbytes(numel)}")
    try:
        header = ChunkHeader(codec.name, numel, chunk, rank, weight, payload)
    except ValueError as exc:
        raise ChunkError(f"chunk header is not valid: {exc}") from exc
    return header, as_tensor(data[HEADER_BYTES:])
