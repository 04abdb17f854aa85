"""The arithmetic of the plan, as properties over all sizes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.collective.plan import (
    Link,
    choose_algorithm,
    choose_chunk_bytes,
    estimate_seconds,
    make_grid,
    owned_chunks,
    place_in_ring,
    place_of_mean,
    ring_order,
    seconds_apart,
    slowest_link,
)


@given(st.integers(0, 100_000), st.integers(0, 5_000), st.integers(1, 1 << 20))
def test_every_element_is_in_exactly_one_chunk(numel, exact, chunk_bytes):
    grid = make_grid([("int8", numel, 1.03), ("fp64", exact, 8.0)], chunk_bytes)
    for section, size in enumerate((numel, exact)):
        cells = [(c.start, c.stop) for c in grid if c.section == section]
        assert [start for start, _ in cells] == [0, *(stop for _, stop in cells)][: len(cells)]
        assert (cells[-1][1] if cells else 0) == size
    assert [c.index for c in grid] == list(range(len(grid)))


@given(st.integers(1, 10_000_000), st.integers(1, 1 << 24))
def test_chunks_end_at_whole_blocks_of_every_codec(numel, chunk_bytes):
    assert all(c.start % 1024 == 0 for c in make_grid([("int8", numel, 1.03)], chunk_bytes))


@given(st.integers(0, 300), st.integers(1, 40))
def test_owners_share_the_chunks_without_gap_or_overlap(num_chunks, members):
    blocks = [owned_chunks(num_chunks, i, members) for i in range(members)]
    assert [i for block in blocks for i in block] == list(range(num_chunks))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_ring_order_sends_everything_once_and_the_own_block_last(num_chunks, members, data):
    position = data.draw(st.integers(0, members - 1))
    order = ring_order(num_chunks, position, members)
    own = list(owned_chunks(num_chunks, position, members))
    assert sorted(order) == list(range(num_chunks))
    assert order[len(order) - len(own) :] == own


def test_ring_order_serves_every_owner_before_any_twice_and_starts_at_another_one_each():
    orders = [ring_order(16, position, 4) for position in range(4)]
    assert [[chunk // 4 for chunk in order[:3]] for order in orders] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]


@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_the_place_of_a_chunk_in_the_ring_is_known_without_making_the_ring(num_chunks, members, data):
    position = data.draw(st.integers(0, members - 1))
    own = owned_chunks(num_chunks, position, members)
    for place, chunk in enumerate(ring_order(num_chunks, position, members)[: num_chunks - len(own)]):
        guess = place_in_ring(chunk, num_chunks, position, members)
        full_rows = place < num_chunks // members * (members - 1)
        assert guess == place if full_rows else abs(guess - place) < members


@given(st.integers(1, 300), st.integers(1, 40))
def test_the_place_of_a_mean_is_its_index_in_its_owners_block(num_chunks, members):
    for position in range(members):
        block = owned_chunks(num_chunks, position, members)
        assert [place_of_mean(chunk, num_chunks, members) for chunk in block] == list(range(len(block)))


@pytest.mark.parametrize(
    ("wire_bytes", "world_size", "algorithm"),
    [
        (1 << 40, 1, "gather"),
        (1 << 40, 2, "gather"),  # one peer to read from: its contribution is all there is to fetch
        (1 << 30, 3, "scatter"),
        (1 << 30, 8, "scatter"),
        (100_000, 8, "gather"),  # two round trips saved are worth more than the bytes
        (0, 1000, "gather"),
    ],
)
def test_the_cost_model_gathers_small_payloads_and_scatters_large_ones(wire_bytes, world_size, algorithm):
    assert choose_algorithm(wire_bytes, world_size, Link(latency_s=0.03, bandwidth=100e6)) == algorithm


def test_the_estimate_is_the_busier_direction_plus_round_trips():
    link = Link(latency_s=0.1, bandwidth=1000.0)
    assert estimate_seconds("gather", 1000, 4, link) == pytest.approx(3.0 + 0.2)
    assert estimate_seconds("scatter", 1000, 4, link) == pytest.approx(1.5 + 0.4)


@given(st.integers(0, 1 << 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 1000))
def test_a_chunk_is_a_power_of_two_between_its_limits_once_decoded(numel, elements_in_4_bytes, world_size):
    wire_bytes = 4 * numel // elements_in_4_bytes
    size = choose_chunk_bytes(wire_bytes, 4 * numel, world_size)
    assert 1 <= size <= 4 << 20
    if wire_bytes > 1 << 20:
        decoded = math.log2(size * 4 * numel / wire_bytes)
        assert decoded == pytest.approx(round(decoded), abs=1e-3)
        assert 18 <= round(decoded) <= 22


@pytest.mark.parametrize(
    ("mib", "wire_share", "world_size", "kib"),
    [(512, 1, 2, 4096), (512, 1, 8, 4096), (64, 1, 2, 2048), (64, 1, 64, 256), (512, 1 / 4, 4, 1024), (1, 1, 2, 256)],
)
def test_chunk_sizes(mib, wire_share, world_size, kib):
    decoded = mib << 20
    assert choose_chunk_bytes(int(decoded * wire_share), decoded, world_size) == kib << 10


@pytest.mark.parametrize("kwargs", [{"latency_s": -1}, {"bandwidth": 0}, {"latency_s": float("nan")}])
def test_a_link_that_cannot_be_is_refused(kwargs):
    with pytest.raises(ValueError, match="latency_s >= 0 and bandwidth > 0"):
        Link(**kwargs)


def test_the_slowest_link_is_the_worst_in_both_respects_of_those_that_are_known():
    assert slowest_link([Link(0.1, 200.0), None, Link(0.3, 500.0)]) == Link(0.3, 200.0)
    assert slowest_link([None, None]) is None


def test_the_first_uploads_begin_apart_by_a_little_less_than_each_takes_and_at_most_a_round_trip():
    link = Link(latency_s=0.03, bandwidth=100e6)
    assert 0.5 * 0.02 < seconds_apart(2_000_000, link) < 0.02
    assert seconds_apart(64_000_000, link) == 0.03
    assert seconds_apart(0, link) == 0
