"""fp32, fp16, bf16 and fp64: one float an element."""

from __future__ import annotations

import pytest
import torch

from aiodiloco.codec import Codec, as_bytes, get_codec
from aiodiloco.testing.codecs import CodecTests, ErrorBound


def _rounding(values: torch.Tensor, *, digits: int, smallest: float, largest: float) -> torch.Tensor:
    """Half a unit in the last of `digits` binary digits, or of the smallest subnormal; no bound from `largest` on."""
    x = values.double().abs()
    return torch.where(x < largest, (x * 2.0**-digits).clamp(min=smallest / 2), torch.inf)


class TestFP32(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("fp32")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return lambda values: torch.zeros_like(values, dtype=torch.float64)


class TestFP64(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("fp64")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return lambda values: torch.zeros_like(values, dtype=torch.float64)


class TestFP16(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("fp16")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return lambda values: _rounding(values, digits=11, smallest=2.0**-24, largest=65520.0)


class TestBF16(CodecTests):
    @pytest.fixture
    def codec(self) -> Codec:
        return get_codec("bf16")

    @pytest.fixture
    def error_bound(self) -> ErrorBound:
        return lambda values: _rounding(values, digits=8, smallest=2.0**-133, largest=2.0**128 - 2.0**119)


def _encoded(name: str, values: list[float]) -> str:
    codec = get_codec(name)
    out = torch.empty(codec.nbytes(len(values)), dtype=torch.uint8)
    codec.encode(torch.tensor(values, dtype=codec.dtype), out)
    return bytes(as_bytes(out)).hex(" ", codec.nbytes(1))


_INF = float("inf")

# Worked out by hand from IEEE 754: sign, exponent, significand; little-endian.
_GOLDEN = {
    ("fp32", 1.0): "0000803f",
    ("fp32", -2.5): "000020c0",
    ("fp32", 2.0**-149): "01000000",
    ("fp32", -_INF): "000080ff",
    ("fp64", 1.0): "000000000000f03f",
    ("fp64", 2.0**53 - 1): "ffffffffffff3f43",
    ("fp64", 2.0**-1074): "0100000000000000",
    ("fp64", -_INF): "000000000000f0ff",
    ("fp16", 1.0): "003c",
    ("fp16", -2.5): "00c1",
    ("fp16", 1 + 2.0**-11): "003c",  # a tie: to even, down
    ("fp16", 1 + 3 * 2.0**-11): "023c",  # a tie: to even, up
    ("fp16", 2.0**-24): "0100",  # the smallest subnormal
    ("fp16", 2.0**-25): "0000",  # a tie between it and zero
    ("fp16", 65519.0): "ff7b",  # still the largest finite number
    ("fp16", 65520.0): "007c",  # overflows
    ("fp16", -1e30): "00fc",
    ("fp16", -0.0): "0080",
    ("fp16", _INF): "007c",
    ("bf16", 1.0): "803f",
    ("bf16", -2.5): "20c0",
    ("bf16", 1 + 2.0**-8): "803f",  # a tie: to even, down
    ("bf16", 1 + 3 * 2.0**-8): "823f",  # a tie: to even, up
    ("bf16", 2.0**-133): "0100",  # the smallest subnormal
    ("bf16", 3.4028234663852886e38): "807f",  # the largest float32 overflows
    ("bf16", 3.3895313892515355e38): "7f7f",  # the largest bf16 does not
    ("bf16", -0.0): "0080",
    ("bf16", -_INF): "80ff",
}


@pytest.mark.parametrize(("name", "value"), _GOLDEN)
def test_bytes_on_the_wire_are_the_ieee_encoding(name: str, value: float) -> None:
    assert _encoded(name, [value]) == _GOLDEN[name, value]


@pytest.mark.parametrize(("name", "expected"), [("fp16", "007e"), ("bf16", "c07f")])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x400000])
@pytest.mark.parametrize("numel", [1, 37, 40_000])
def test_a_narrow_format_has_one_nan_whatever_kernel_wrote_it(name: str, expected: str, bits: int, numel: int) -> None:
    codec = get_codec(name)
    out = torch.empty(2 * numel, dtype=torch.uint8)
    codec.encode(torch.full((numel,), bits, dtype=torch.int32).view(torch.float32), out)
    assert bytes(as_bytes(out)) == bytes.fromhex(expected) * numel


def test_fp32_keeps_the_bits_of_a_nan() -> None:
    out = torch.empty(4, dtype=torch.uint8)
    get_codec("fp32").encode(torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32), out)
    assert bytes(as_bytes(out)).hex() == "0100807f"


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_all_codes_of_a_narrow_format_survive_decoding_and_encoding(name: str) -> None:
    """65536 bit patterns; the NaNs become the one NaN."""
    codec = get_codec(name)
    codes = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.uint8)
    values, again = torch.empty(65536), torch.empty(2 * 65536, dtype=torch.uint8)
    codec.decode(codes, values)
    codec.encode(values, again)
    number = ~values.isnan()
    assert torch.equal(again.view(torch.int16)[number], codes.view(torch.int16)[number])
    assert int(number.sum()) == {"fp16": 65536 - 2 * 1023, "bf16": 65536 - 2 * 127}[name]
    assert len(set(again.view(torch.int16)[~number].tolist())) == 1


def test_an_unaligned_place_to_write_is_refused() -> None:
    with pytest.raises(ValueError, match="aligned to 2 bytes"):
        get_codec("bf16").encode(torch.ones(2), torch.zeros(5, dtype=torch.uint8)[1:])
