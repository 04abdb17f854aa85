"""int8 with one scale per block of 128."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from aiodiloco.codec import Codec, as_bytes, as_tensor, get_codec
from aiodiloco.testing.codecs import CodecTests, ErrorBound

_LARGEST = torch.finfo(torch.float32).max


def _error_bound(values: torch.Tensor) -> torch.Tensor:
    """absmax / 254 of the block and 2**-16 of that; absmax where that is below 127 * 2**-120."""
    padded = torch.zeros(-(-len(values) // 128) * 128, dtype=torch.float64)
    padded[: len(values)] = values.double().abs()
    absmax = padded.view(-1, 128).amax(dim=1).repeat_interleave(128)[: len(values)]
    return torch.where(absmax < 127 * 2.0**-120, absmax, absmax / 254 * (1 + 2.0**-16))


class TestInt8(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("int8")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return _error_bound


def _encode(values: torch.Tensor) -> bytes:
    codec = get_codec("int8")
    out = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8)
    codec.encode(values, out)
    return bytes(as_bytes(out))


def _decode(data: bytes, numel: int) -> list[float]:
    out = torch.empty(numel)
    get_codec("int8").decode(as_tensor(data), out)
    return out.tolist()


def _f32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def _reference_block(block: list[float]) -> tuple[bytes, bytes]:
    """The definition, in Python floats: rounding their quotients and products to fp32 rounds correctly."""
    scale = _f32(max(map(abs, block)) / 127)
    scale = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", scale))[0] & ~0x7F))[0]
    if scale < 2.0**-120:
        return bytes(4), bytes(len(block))
    inverse = _f32(1 / scale)
    return struct.pack("<f", scale), struct.pack(f"{len(block)}b", *(round(_f32(x * inverse)) for x in block))


@pytest.mark.parametrize("exponent", [-130, -114, -112, -30, 0, 30, 125])
def test_bytes_are_those_of_the_definition_worked_out_in_python(exponent: int) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(exponent)).clamp(-4, 4) * 2.0**exponent
    rows = [_reference_block(values[i : i + 128].tolist()) for i in range(0, 1000, 128)]
    assert _encode(values) == b"".join(s for s, _ in rows) + b"".join(q for _, q in rows)


# By hand: 127 / 127 = 1.0 is 0x3f800000; 31.75 / 127 = 0.25 is 0x3e800000.
def test_bytes_on_the_wire_are_scales_then_values() -> None:
    values = torch.zeros(130)
    values[:5] = torch.tensor([127.0, -127.0, 0.5, 1.5, -2.49])  # ties to even: 0 and 2
    values[128:] = torch.tensor([-31.75, 0.25])
    expected = "0000803f 0000803e" + "7f 81 00 02 fe" + "00" * 123 + "81 01"
    assert _encode(values) == bytes.fromhex(expected)


def test_bytes_of_one_third() -> None:
    """1/3 is 11184811 * 2**-25, by 127 that is 11272880.4 * 2**-32: 0xac02b0, and 0xac0280 without its 7 low bits."""
    assert _encode(torch.tensor([1 / 3, -1 / 3])) == bytes.fromhex("80022c3b 7f 81")


def test_an_all_zero_block_is_zeros() -> None:
    assert _encode(torch.zeros(3)) == bytes(7)
    assert _encode(torch.tensor([-0.0])) == bytes(5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_makes_its_block_nan_and_nothing_else(bad: float) -> None:
    values = torch.ones(300)
    values[130] = bad
    data = _encode(values)
    assert data[4:8] == bytes.fromhex("0000c07f")
    assert data[12 + 128 : 12 + 256] == bytes(128)
    decoded = _decode(data, 300)
    assert all(math.isnan(x) for x in decoded[128:256])
    assert decoded[:128] + decoded[256:] == _decode(_encode(torch.ones(172)), 172)


@pytest.mark.parametrize("value", [_LARGEST, -_LARGEST, _LARGEST * (1 - 2.0**-23)])
def test_the_largest_floats_do_not_overflow(value: float) -> None:
    (decoded,) = _decode(_encode(torch.tensor([value])), 1)
    assert math.isfinite(decoded)
    assert abs(decoded - value) <= _LARGEST / 254


def test_blocks_too_small_for_their_scale_are_zeros() -> None:
    """The smallest scale is 2**-120: one below its absmax is zero, at its absmax it is not."""
    edge = 127 * 2.0**-120
    below = torch.nextafter(torch.tensor(edge), torch.tensor(0.0))
    assert _decode(_encode(torch.tensor([edge])), 1) == [edge]
    assert _decode(_encode(below[None]), 1) == [0.0]


def test_the_products_are_exact_for_every_scale() -> None:
    """17 bits times 7 bits fit the 24 of fp32, so no fused or reordered arithmetic can change a decoded bit."""
    absmax = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 0.5
    values = torch.zeros(2000, 128)
    values[:, 0], values[:, 1] = absmax, absmax / 3
    data = _encode(values.flatten())
    scales, q = struct.unpack("<2000f", data[:8000]), struct.unpack("256000b", data[8000:])
    assert _decode(data, 256_000) == [scales[i // 128] * q[i] for i in range(256_000)]


def test_an_unaligned_place_to_write_is_refused() -> None:
    with pytest.raises(ValueError, match="aligned to 4 bytes"):
        get_codec("int8").encode(torch.ones(2), torch.zeros(7, dtype=torch.uint8)[1:])
