"""Chunks say what they are and prove that they are whole."""

from __future__ import annotations

import dataclasses
import math
import struct
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.codec import (
    HEADER_BYTES,
    REDUCED,
    ChunkHeader,
    as_bytes,
    chunk_nbytes,
    digest,
    get_codec,
    pack_chunk,
    unpack_chunk,
    wire_names,
)
from aiodiloco.errors import ChunkError

_ALL = (*wire_names(), "fp64")
_HEADER = ChunkHeader("int8", 3, chunk=7, rank=2, weight=0.5, payload=b"payload!")
_VALUES = torch.tensor([127.0, -1.0, 0.0])

_U32 = st.integers(0, 2**32 - 1)
_HEADERS = st.builds(
    ChunkHeader,
    codec=st.sampled_from(_ALL),
    numel=st.integers(0, 300),
    chunk=_U32,
    rank=_U32,
    weight=st.floats(0, allow_nan=False, allow_infinity=False),
    payload=st.binary(min_size=8, max_size=8),
)


def _packed() -> bytes:
    return bytes(pack_chunk(_HEADER, _VALUES))


def _sealed(data: bytes, **fields: tuple[int, str, object]) -> bytes:
    """Return `data` with fields (offset, format, value) replaced, and a digest that is right for that."""
    changed = bytearray(data)
    for offset, form, value in fields.values():
        struct.pack_into(form, changed, offset, value)
    changed[56:64] = digest(changed[:56], changed[64:])
    return bytes(changed)


@given(header=_HEADERS)
def test_every_header_and_its_values_come_back(header: ChunkHeader) -> None:
    codec = get_codec(header.codec)
    values = torch.linspace(-3, 5, header.numel, dtype=codec.dtype)
    data = pack_chunk(header, values)
    assert len(data) == chunk_nbytes(codec, header.numel)
    found, body = unpack_chunk(data)
    assert found == header
    expected = torch.empty(codec.nbytes(header.numel), dtype=torch.uint8)
    codec.encode(values, expected)
    assert torch.equal(body, expected)


def test_bytes_on_the_wire() -> None:
    """Magic, version 1, code 4, numel 3, body 7, chunk 7, rank 2, weight 0.5, payload, zeros, digest; 1.0 and q."""
    head = (
        "444c434b 0100 0400 0300000000000000 0700000000000000 07000000 02000000"
        "000000000000e03f 7061796c6f616421 0000000000000000"
    )
    body = "0000803f 7f ff 00"
    seal = digest(bytes.fromhex(head), bytes.fromhex(body)).hex()
    assert _packed().hex() == bytes.fromhex(head + seal + body).hex()


def test_a_reduced_chunk_has_a_rank_of_its_own() -> None:
    header, _ = unpack_chunk(pack_chunk(dataclasses.replace(_HEADER, rank=REDUCED), _VALUES))
    assert header.rank == REDUCED == 0xFFFFFFFF


def test_packing_leaves_the_values_alone() -> None:
    values = _VALUES.clone()
    pack_chunk(_HEADER, values)
    assert torch.equal(values, _VALUES)


@pytest.mark.parametrize("name", _ALL)
def test_every_single_bit_flip_is_refused(name: str) -> None:
    codec = get_codec(name)
    data = bytearray(pack_chunk(ChunkHeader(name, 5, 0, 0), torch.arange(5, dtype=codec.dtype)))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkError):
            unpack_chunk(data)
        data[bit // 8] ^= 1 << bit % 8
    unpack_chunk(data)


def test_every_truncation_is_refused() -> None:
    data = _packed()
    for size in range(len(data)):
        with pytest.raises(ChunkError, match=f"truncated: {size} bytes"):
            unpack_chunk(data[:size])


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 64, _packed()])
def test_trailing_bytes_are_refused(extra: bytes) -> None:
    with pytest.raises(ChunkError, match=f"too long: {71 + len(extra)} bytes, where its header says 71"):
        unpack_chunk(_packed() + extra)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + _packed()[4:], r"its magic is b'PK\\x03\\x04', not b'DLCK'"),
        (_sealed(_packed(), version=(4, "<H", 2)), "version 2, where this release reads 1"),
        (_packed()[:-1] + b"\1", "corrupted: its digest is [0-9a-f]{16}, where its header says [0-9a-f]{16}"),
        (_sealed(_packed(), code=(6, "<H", 77)), "wire format 77, which this release does not know"),
        (_sealed(_packed(), numel=(8, "<Q", 4)), "7 bytes where 4 × int8 take 8"),
        (_sealed(_packed(), numel=(8, "<Q", 2**63)), f"7 bytes where {2**63} × int8 take"),
        (_sealed(_packed(), body=(16, "<Q", 2**63)), f"truncated: 71 bytes, where its header says {2**63 + 64}"),
        (_sealed(_packed(), weight=(32, "<d", math.nan)), "weight must be finite and >= 0, not nan"),
    ],
    ids=["magic", "version", "digest", "code", "sizes", "elements", "bytes", "weight"],
)
def test_the_error_names_the_check_and_what_was_found(data: bytes, message: str) -> None:
    with pytest.raises(ChunkError, match=message):
        unpack_chunk(data)


def test_the_body_is_a_view_of_read_only_memory_too() -> None:
    memory = bytearray(_packed())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, body = unpack_chunk(memoryview(memory).toreadonly())
    memory[-1] = 99
    assert body.tolist()[-1] == 99


def test_a_chunk_may_lie_anywhere_in_a_larger_buffer() -> None:
    for offset in range(9):
        memory = bytearray(offset) + _packed()
        header, body = unpack_chunk(memoryview(memory)[offset:])
        values = torch.empty(3)
        get_codec(header.codec).decode(body, values)
        assert values.tolist() == [127.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "fp8"}, "no wire format is called 'fp8'"),
        ({"numel": -1}, r"numel must be 0 \.\. 2\*\*56 - 1, not -1"),
        ({"chunk": -1}, "not -1 and 2"),
        ({"rank": 2**32}, "not 7 and 4294967296"),
        ({"weight": -1.0}, "weight must be finite and >= 0, not -1.0"),
        ({"weight": math.inf}, "weight must be finite and >= 0, not inf"),
        ({"payload": b"short"}, "payload must be 8 bytes, not 5"),
    ],
)
def test_a_header_that_cannot_be_written_is_refused_at_once(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_HEADER, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_values_that_do_not_fit_the_header_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) of the header, not \(4,\)"):
        pack_chunk(_HEADER, torch.zeros(4))
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        pack_chunk(_HEADER, torch.zeros(3, dtype=torch.float64))


def test_digest_is_xxh3_of_the_parts_joined() -> None:
    """The digest of nothing is published with the algorithm."""
    assert digest().hex() == "2d06800538d394c2"
    assert digest(b"ab", b"", memoryview(b"c")) == digest(b"abc")
    assert digest(b"abc") != digest(b"abd")


def test_the_buffer_outlives_everything_but_the_chunk() -> None:
    data = pack_chunk(_HEADER, _VALUES)
    _, body = unpack_chunk(data)
    assert as_bytes(body).nbytes == len(data) - HEADER_BYTES
    del data
    torch.full((1 << 16,), 0xEE, dtype=torch.uint8)  # would reuse the memory if it were free
    assert body.tolist()[-3:] == [0x7F, 0xFF, 0x00]
