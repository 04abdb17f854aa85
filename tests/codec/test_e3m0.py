"""e3m0: four bits an element, a power of two per block of 128."""

from __future__ import annotations

import math

import pytest
import torch

from aiodiloco.codec import Codec, as_bytes, as_tensor, get_codec
from aiodiloco.testing.codecs import CodecTests, ErrorBound

_LARGEST = torch.finfo(torch.float32).max


def _error_bound(values: torch.Tensor) -> torch.Tensor:
    """The larger of |x| / 3 and absmax / 64; absmax below 1.5 * 2**-121; |x| / 2 from 1.5 * 2**127 on."""
    x = values.double().abs()
    padded = torch.zeros(-(-len(values) // 128) * 128, dtype=torch.float64)
    padded[: len(values)] = x
    absmax = padded.view(-1, 128).amax(dim=1).repeat_interleave(128)[: len(values)]
    bound = torch.maximum(x / torch.where(x < 1.5 * 2.0**127, 3.0, 2.0), absmax / 64)
    return torch.where(absmax < 1.5 * 2.0**-121, absmax, bound)


class TestE3M0(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("e3m0")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return _error_bound


def _encode(values: torch.Tensor) -> bytes:
    codec = get_codec("e3m0")
    out = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8)
    codec.encode(values, out)
    return bytes(as_bytes(out))


def _decode(data: bytes, numel: int) -> list[float]:
    out = torch.empty(numel)
    get_codec("e3m0").decode(as_tensor(data), out)
    return out.tolist()


def _nearest_exponent(x: float) -> int:
    """The k of the power of two nearest to x > 0; of two at the same distance the larger."""
    mantissa, exponent = math.frexp(x)  # mantissa in 0.5 .. 1
    return exponent if mantissa >= 0.75 else exponent - 1


def _reference_block(block: list[float]) -> tuple[int, list[int]]:
    """The definition, in Python floats: the scale byte and one nibble per element."""
    absmax = max(map(abs, block))
    if not absmax >= 1.5 * 2.0**-121:
        return 0, [8 * (math.copysign(1, x) < 0) for x in block]
    scale = min(127, _nearest_exponent(absmax))
    nibbles = []
    for x in block:
        level = min(7, max(0, _nearest_exponent(abs(x)) - scale + 7)) if x else 0
        nibbles.append(8 * (math.copysign(1, x) < 0) + level)
    return scale + 127, nibbles


@pytest.mark.parametrize("exponent", [-140, -123, -120, -30, 0, 30, 125, 127])
@pytest.mark.parametrize("numel", [1000, 1001, 1024])
def test_bytes_are_those_of_the_definition_worked_out_in_python(exponent: int, numel: int) -> None:
    noise = torch.randn(numel, generator=torch.Generator().manual_seed(exponent + 200)).clamp(-1.9, 1.9)
    values = noise.double().mul(2.0**exponent).float()
    rows = [_reference_block(values[i : i + 128].tolist()) for i in range(0, numel, 128)]
    nibbles = [nibble for _, block in rows for nibble in block] + [0] * (numel % 2)
    packed = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    assert _encode(values) == bytes(scale for scale, _ in rows) + packed


# By hand. 1.0 is 2**(127 - 127): 0x7f. 0.25 is 2**(125 - 127): 0x7d. Levels 7 .. 1 are scale, scale / 2 .. scale / 64.
def test_bytes_on_the_wire_are_scales_then_pairs() -> None:
    values = torch.zeros(131)
    values[:8] = torch.tensor([1.0, -1.0, 0.5, -0.25, 0.125, 0.0625, 0.03125, -0.015625])
    values[128:] = torch.tensor([-0.25, 0.125, 0.25])
    expected = "7f 7d" + "f7 d6 34 92" + "00" * 60 + "6f 07"
    assert _encode(values) == bytes.fromhex(expected)


def test_bytes_of_ties_and_of_what_is_just_below_them() -> None:
    """Halfway between two powers of two is 1.5 times the smaller; 1.5 / 128 is the least that is not zero."""
    ties = torch.tensor([1.0, 0.75, 0.375, -0.1875, 1.5 / 64, 1.5 / 128])
    assert _encode(ties) == bytes.fromhex("7f 77 d6 12")
    below = torch.nextafter(ties, torch.zeros(6))
    assert _encode(below) == bytes.fromhex("7f 67 c5 01")


def test_the_scale_is_the_power_of_two_nearest_to_the_absmax() -> None:
    """So the largest element keeps its level when a neighbour is added: up to 1.5 it is 1, from there on it is 2."""
    assert _encode(torch.tensor([1.49])) == bytes.fromhex("7f 07")
    assert _encode(torch.tensor([1.5, 1.49])) == bytes.fromhex("80 67")
    assert _decode(bytes.fromhex("80 67"), 2) == [2.0, 1.0]


def test_zeros_keep_their_sign() -> None:
    assert _encode(torch.zeros(3)) == bytes(3)
    assert _encode(torch.tensor([-0.0, 0.0, 1.0, -1e-9])) == bytes.fromhex("7f 08 87")
    assert math.copysign(1, _decode(bytes.fromhex("7f 08"), 1)[0]) == -1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_makes_its_block_nan_and_nothing_else(bad: float) -> None:
    values = -torch.ones(300)
    values[130] = bad
    data = _encode(values)
    assert data[:3] == bytes.fromhex("7f ff 7f")
    assert data[3 + 64 : 3 + 128] == bytes(64)
    decoded = _decode(data, 300)
    assert all(math.isnan(x) for x in decoded[128:256])
    assert decoded[:128] + decoded[256:] == [-1.0] * 172


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF])
def test_every_nan_is_seen(bits: int) -> None:
    """Also one whose payload lies in the half of the float that encoding does not look at."""
    values = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert _encode(values) == bytes.fromhex("ff 00")


@pytest.mark.parametrize(("value", "decoded"), [(_LARGEST, 2.0**127), (-1.5 * 2.0**127, -(2.0**127))])
def test_the_largest_floats_do_not_overflow(value: float, decoded: float) -> None:
    """2**128, the nearest power of two, is no float."""
    assert _decode(_encode(torch.tensor([value, value / 2])), 2) == [decoded, decoded]


def test_blocks_too_small_for_their_levels_are_zeros() -> None:
    """The smallest scale is 2**-120: below what rounds to it there are zeros, and at it the levels are exact."""
    edge = torch.tensor([1.5 * 2.0**-121, 2.0**-126])
    assert _decode(_encode(edge), 2) == [2.0**-120, 2.0**-126]
    assert _decode(_encode(torch.nextafter(edge, torch.zeros(2))), 2) == [0.0, 0.0]


def test_every_byte_decodes_to_the_values_of_its_two_nibbles() -> None:
    levels = [0.0, *(2.0**-k for k in range(6, -1, -1))]
    signed = levels + [-level for level in levels]
    decoded = _decode(bytes([130] * 4) + bytes(range(256)), 512)
    assert decoded == [8 * signed[nibble] for byte in range(256) for nibble in (byte & 15, byte >> 4)]


def test_scale_bytes_that_are_never_written_decode_to_zeros() -> None:
    """Their smallest levels would be denormal, which a flush-to-zero mode could change."""
    for scale in range(7):
        assert _decode(bytes([scale, 0x77]), 2) == [0.0, 0.0]
