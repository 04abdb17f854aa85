"""Memory for the chunks of a round."""

from aiodiloco.codec import as_tensor, chunk_nbytes, get_codec
from aiodiloco.collective.buffers import MAX_REFUSAL_BYTES, Buffers
from aiodiloco.collective.plan import make_grid

GRID = make_grid([("fp32", 100_000, 4.0), ("fp64", 5_000, 8.0)], 128 << 10)


def address(data):
    return as_tensor(data).data_ptr()


def test_a_piece_holds_any_chunk_and_any_refusal_and_a_byte_more():
    piece = Buffers(GRID).take()
    assert len(piece) > max(chunk_nbytes(get_codec(c.codec), c.numel) for c in GRID)
    assert len(Buffers(GRID[-1:]).take()) > MAX_REFUSAL_BYTES


def test_what_comes_back_is_lent_again_whole_and_two_never_share():
    buffers = Buffers(GRID)
    first, second = buffers.take(), buffers.take()
    assert address(first) != address(second)
    buffers.give_back(first[:100])
    again = buffers.take()
    assert (address(again), len(again)) == (address(first), len(first))


def test_chunks_of_the_mean_lie_apart_each_in_its_own_place():
    buffers = Buffers(GRID)
    places = [buffers.of_mean(chunk.index) for chunk in GRID]
    for chunk, place in zip(GRID, places, strict=True):
        assert len(place) > chunk_nbytes(get_codec(chunk.codec), chunk.numel)
        assert address(place) % 8 == 0
        place[:] = bytes([chunk.index + 1]) * len(place)
    for chunk in GRID:
        place = buffers.of_mean(chunk.index)
        assert place == bytes([chunk.index + 1]) * len(place)
