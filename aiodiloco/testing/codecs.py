"""`CodecTests`: what every wire format must do, as one suite to inherit. Needs pytest, hypothesis and torch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aiodiloco.codec import as_bytes, as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from aiodiloco.codec import Codec

__all__ = ["CodecTests", "ErrorBound"]

ErrorBound: TypeAlias = "Callable[[Tensor], Tensor]"

# Codecs are stateless and the suite is inherited on purpose, which is what the two checks warn about.
_property = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

_NUM_BLOCKS = 3  # property tests draw up to this many blocks and a bit


class CodecTests:
    """Inherit and give two fixtures; override no test.

        class TestMyCodec(CodecTests):
            @pytest.fixture
            def codec(self) -> Codec: ...
            @pytest.fixture
            def error_bound(self) -> ErrorBound: ...

    `error_bound(values)` returns, for finite `values` in the codec's dtype, the largest absolute error of each
    decoded element: (numel,) float64, infinite where the format may overflow.
    """

    def test_has_a_name_and_a_code_that_fits_the_header(self, codec: Codec) -> None:
        """A chunk header has room for it."""
        assert codec.name
        assert 0 < codec.code < 2**16
        assert codec.block >= 1
        assert codec.dtype in (torch.float32, torch.float64)

    def test_sizes_add_up_at_block_boundaries(self, codec: Codec) -> None:
        """Chunks are cut there, so the whole must take what its parts take."""
        assert codec.nbytes(0) == 0
        for rest in range(2 * codec.block):
            assert codec.nbytes(5 * codec.block + rest) == codec.nbytes(5 * codec.block) + codec.nbytes(rest)

    @_property
    @given(data=st.data())
    def test_finite_values_come_back_within_the_error_bound(
        self, codec: Codec, error_bound: ErrorBound, data: st.DataObject
    ) -> None:
        """Whatever their bits."""
        values = data.draw(_values(codec))
        assume(bool(values.isfinite().all()))
        _check_bound(codec, error_bound, values)

    @pytest.mark.parametrize("magnitude", ["zero", "smallest", "tiny", "one", "large", "largest"])
    def test_every_magnitude_comes_back_within_the_error_bound(
        self, codec: Codec, error_bound: ErrorBound, magnitude: str
    ) -> None:
        """All zeros, denormals and the largest floats included: no scale arithmetic may overflow."""
        info = torch.finfo(codec.dtype)
        factor = {
            "zero": 0.0,
            "smallest": info.smallest_normal * info.eps,
            "tiny": info.tiny,
            "one": 1.0,
            "large": info.max**0.5,
            "largest": info.max,
        }[magnitude]
        ramp = torch.linspace(-1, 1, 2 * codec.block + 9, dtype=codec.dtype)
        _check_bound(codec, error_bound, ramp * factor)
        _check_bound(codec, error_bound, torch.full((2 * codec.block + 9,), factor, dtype=codec.dtype))

    def test_signs_and_zeros_come_back(self, codec: Codec) -> None:
        """A pseudo-gradient that changed sign would train backwards."""
        values = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0], dtype=codec.dtype)
        assert torch.equal(_round_trip(codec, values).sign(), values)

    @_property
    @given(data=st.data())
    def test_encoding_what_was_decoded_gives_the_same_bytes(self, codec: Codec, data: st.DataObject) -> None:
        """The mean is encoded once and all ranks apply the decoded bytes: they must be the format's own values."""
        values = data.draw(_values(codec))
        once = _encode(codec, values)
        assert _bits(_encode(codec, _decode(codec, once, len(values)))) == _bits(once)

    @_property
    @given(data=st.data())
    def test_every_byte_is_written_whatever_was_there(self, codec: Codec, data: st.DataObject) -> None:
        """Equal values must give equal bytes, in recycled memory too."""
        values = data.draw(_values(codec))
        assert _bits(_encode(codec, values, fill=0x00)) == _bits(_encode(codec, values, fill=0xFF))

    @_property
    @given(data=st.data())
    def test_every_element_is_decoded_whatever_was_there(self, codec: Codec, data: st.DataObject) -> None:
        """The place to write to may hold anything, NaNs included."""
        values = data.draw(_values(codec))
        encoded = _encode(codec, values)
        ones, nans = (_bits(_decode(codec, encoded, len(values), fill=fill)) for fill in (1.0, torch.nan))
        assert ones == nans

    @_property
    @given(data=st.data())
    def test_encoding_and_decoding_only_read_their_input(self, codec: Codec, data: st.DataObject) -> None:
        """Nobody but the caller writes there."""
        values = data.draw(_values(codec))
        before = _bits(values)
        encoded = _encode(codec, values)
        assert _bits(values) == before
        before = _bits(encoded)
        _decode(codec, encoded, len(values))
        assert _bits(encoded) == before

    @_property
    @given(data=st.data())
    def test_no_non_finite_value_becomes_a_number(self, codec: Codec, data: st.DataObject) -> None:
        """A NaN stays one; an infinity stays itself or becomes NaN."""
        values = data.draw(_values(codec))
        decoded = _round_trip(codec, values)
        assert bool(decoded[values.isnan()].isnan().all())
        infinite = values.isinf()
        assert bool(((decoded == values) | decoded.isnan())[infinite].all())

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("at", ["first", "last"])
    def test_a_non_finite_value_stays_in_its_block(self, codec: Codec, bad: float, at: str) -> None:
        """It is seen, and the other blocks decode as if it were not there."""
        clean = _wave(codec, 3 * codec.block)
        dirty = clean.clone()
        dirty[codec.block if at == "first" else 2 * codec.block - 1] = bad
        expected, found = _round_trip(codec, clean), _round_trip(codec, dirty)
        for block in (slice(0, codec.block), slice(2 * codec.block, None)):
            assert _bits(found[block]) == _bits(expected[block])
        assert not found[codec.block : 2 * codec.block].isfinite().all()

    @_property
    @given(data=st.data())
    def test_blocks_do_not_depend_on_how_values_are_cut(self, codec: Codec, data: st.DataObject) -> None:
        """The chunk size must not change a bit."""
        values = data.draw(_values(codec))
        cut = codec.block * data.draw(st.integers(0, len(values) // codec.block))
        parts = torch.cat([_round_trip(codec, values[:cut].clone()), _round_trip(codec, values[cut:].clone())])
        assert _bits(parts) == _bits(_round_trip(codec, values))

    def test_large_chunks_are_encoded_like_their_blocks(self, codec: Codec) -> None:
        """Whatever a codec does to be fast on many elements must not change a bit."""
        values = _wave(codec, 3 * 32768 + codec.block + 5)
        values[70000] = torch.nan
        whole = _round_trip(codec, values)
        step = 41 * codec.block
        parts = [_round_trip(codec, values[i : i + step].clone()) for i in range(0, len(values), step)]
        assert _bits(torch.cat(parts)) == _bits(whole)

    def test_unaligned_values_give_the_same_bytes(self, codec: Codec) -> None:
        """A vector kernel begins and ends elsewhere then."""
        values = _special(codec)
        expected = _bits(_encode(codec, values))
        for offset in range(1, 17):
            shifted = torch.empty(offset + len(values), dtype=codec.dtype)[offset:]
            assert _bits(_encode(codec, shifted.copy_(values))) == expected

    def test_unaligned_data_decodes_to_the_same_bits(self, codec: Codec) -> None:
        """Bytes from a network lie anywhere."""
        values = _special(codec)
        encoded = _encode(codec, values)
        expected = _bits(_decode(codec, encoded, len(values)))
        for offset in range(1, 9):
            memory = bytearray(offset) + _bits(encoded)
            assert _bits(_decode(codec, as_tensor(memory)[offset:], len(values))) == expected
            assert _bits(_decode(codec, as_tensor(memoryview(memory)[offset:]), len(values))) == expected

    def test_threads_may_share_a_codec(self, codec: Codec) -> None:
        """Many workers encode at once."""
        wave = _wave(codec, 70_001)
        chunks = [wave * (i + 1) for i in range(4)]
        expected = [_bits(_round_trip(codec, chunk)) for chunk in chunks]
        barrier = threading.Barrier(4, timeout=30)

        def work(chunk: Tensor) -> set[bytes]:
            barrier.wait()
            return {_bits(_round_trip(codec, chunk)) for _ in range(25)}

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, chunks)) == [{bits} for bits in expected]

    def test_flush_to_zero_changes_nothing(self, codec: Codec) -> None:
        """The mode belongs to the calling thread, and any library may have set it."""
        values = _special(codec)
        encoded = _encode(codec, values)

        def both() -> tuple[bytes, bytes]:
            return _bits(_encode(codec, values)), _bits(_decode(codec, encoded, len(values)))

        def flushing() -> tuple[bytes, bytes]:
            torch.set_flush_denormal(True)  # of this thread, which ends here; False where the CPU cannot
            return both()

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(flushing).result() == both()

    def test_nothing_encodes_to_nothing(self, codec: Codec) -> None:
        """An empty tensor is a tensor."""
        assert _encode(codec, torch.empty(0, dtype=codec.dtype)).tolist() == []
        assert _decode(codec, torch.empty(0, dtype=torch.uint8), 0).tolist() == []

    def test_tensors_of_the_wrong_kind_are_refused(self, codec: Codec) -> None:
        """By name, with what was expected and what was found."""
        good, room = torch.zeros(4, dtype=codec.dtype), torch.zeros(codec.nbytes(4), dtype=torch.uint8)
        for values in (good.to(torch.int32), good.view(2, 2), torch.zeros(8, dtype=codec.dtype)[::2], good.to("meta")):
            with pytest.raises(ValueError, match="values must be a contiguous"):
                codec.encode(values, room)
            with pytest.raises(ValueError, match="values must be a contiguous"):
                codec.decode(room, values)
        for data in (room[1:], torch.zeros(len(room) + 1, dtype=torch.uint8), room.to(torch.int8), room[None]):
            with pytest.raises(ValueError, match="the encoded data must be a contiguous"):
                codec.encode(good, data)
            with pytest.raises(ValueError, match="the encoded data must be a contiguous"):
                codec.decode(data, good)


def _encode(codec: Codec, values: Tensor, *, fill: int = 0xA5) -> Tensor:
    out = torch.full((codec.nbytes(len(values)),), fill, dtype=torch.uint8)
    codec.encode(values, out)
    return out


def _decode(codec: Codec, data: Tensor, numel: int, *, fill: float = 0.5) -> Tensor:
    out = torch.full((numel,), fill, dtype=codec.dtype)
    codec.decode(data, out)
    return out


def _round_trip(codec: Codec, values: Tensor) -> Tensor:
    out = torch.full_like(values, 0.5)
    codec.decode(_encode(codec, values), out)
    return out


def _check_bound(codec: Codec, error_bound: ErrorBound, values: Tensor) -> None:
    decoded, bound = _round_trip(codec, values).double(), error_bound(values)
    within = ((decoded - values.double()).abs() <= bound) | (bound.isinf() & (decoded == values.sign() * torch.inf))
    assert bool(within.all()), f"{values[~within]} came back as {decoded[~within]}, bound {bound[~within]}"


def _bits(tensor: Tensor) -> bytes:
    """Return the tensor's memory, so that NaNs and signed zeros compare too."""
    return bytes(as_bytes(tensor))


def _wave(codec: Codec, numel: int) -> Tensor:
    """Return (numel,) values of mixed sign and size, the same on every call."""
    steps = torch.arange(1, numel + 1, dtype=torch.float64)
    return ((steps * 0.7).sin() / (1 + steps % 97)).to(codec.dtype)


def _special(codec: Codec) -> Tensor:
    """Return three blocks and a bit of values with NaNs, infinities, denormals and zeros among them."""
    info = torch.finfo(codec.dtype)
    values = _wave(codec, 3 * max(codec.block, 32) + 7)
    values[3], values[4], values[5] = torch.nan, torch.inf, -torch.inf
    values[8], values[9], values[10] = info.tiny / 3, -info.tiny * info.eps, -0.0
    values[-20:] *= info.tiny
    return values


def _values(codec: Codec) -> st.SearchStrategy[Tensor]:
    """Return a strategy for values: any bit patterns at all, and noise of one magnitude with a few odd ones."""
    most = _NUM_BLOCKS * codec.block + 17
    size = codec.dtype.itemsize
    bits = st.binary(max_size=size * most).map(lambda b: _from_bits(b[: len(b) // size * size], codec.dtype))
    noise = st.builds(_noise, st.just(codec.dtype), st.integers(0, most), st.integers(0, 2**32), st.integers(-150, 127))
    return bits | noise


def _from_bits(data: bytes, dtype: torch.dtype) -> Tensor:
    return as_tensor(bytearray(data)).view(dtype)


def _noise(dtype: torch.dtype, numel: int, seed: int, exponent: int) -> Tensor:
    noise = torch.rand(numel, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((noise * 2 - 1) * 2.0**exponent).to(dtype)
