"""What every rank gets out of an all-reduce, whatever happens on the way."""

import dataclasses
import random

import anyio
import pytest
import torch

from aiodiloco.codec import pack_chunk, unpack_chunk
from aiodiloco.collective import Member, ObjectStoreAllReduce
from aiodiloco.collective.keys import RoundKeys
from aiodiloco.errors import (
    ChunkError,
    CollectiveError,
    KeyNotFoundError,
    RankTakenError,
    RoundRefusedError,
    RoundTimeoutError,
    WorldSizeError,
)
from aiodiloco.store import MemoryStore
from aiodiloco.testing.cancellation import cancel_at_every_step
from tests.collective.ranks import mean_in_rank_order, on_all, open_ranks, random_tensors, reduce_all

SHAPES = {"embedding": (300, 40), "bias": (), "empty": (0, 3), "head": (7, 5, 3)}
ALGORITHMS = ["gather", "scatter"]


class ShufflingStore(MemoryStore):
    """A store whose objects take a random, seeded while to be written, so contributions arrive in any order."""

    def __init__(self, seed):
        super().__init__()
        self.random = random.Random(seed)

    async def put(self, key, data):
        await anyio.sleep(self.random.choice([0, 0.001, 0.01]))
        await super().put(key, data)


async def averaged(world_size, *, seed=0, shapes=SHAPES, **options):
    tensors = [random_tensors(rank, shapes) for rank in range(world_size)]
    async with open_ranks(ShufflingStore(seed), world_size, **options) as ranks:
        reports = await reduce_all(ranks, tensors)
    return tensors, reports


def assert_bitwise_equal(first, *others):
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            assert first[name].dtype == other[name].dtype
            assert torch.equal(first[name].view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8)), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk_bytes", [1, 10_000, None])
async def test_the_mean_is_the_float32_sum_in_rank_order_to_the_bit(world_size, algorithm, chunk_bytes):
    expected = mean_in_rank_order([random_tensors(rank, SHAPES) for rank in range(world_size)])
    tensors, reports = await averaged(world_size, seed=world_size, algorithm=algorithm, chunk_bytes=chunk_bytes)
    assert_bitwise_equal(expected, *tensors)
    assert {r.algorithm for r in reports} == {algorithm}
    assert all(r.members == tuple(Member(rank, 0) for rank in range(world_size)) for r in reports)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "int8", "e3m0"])
async def test_all_ranks_get_the_same_bits_with_either_algorithm_any_grid_and_any_arrival_order(wire):
    results = []
    for seed, algorithm in enumerate(ALGORITHMS * 2):
        tensors, _ = await averaged(4, seed=seed, wire=wire, algorithm=algorithm, chunk_bytes=4096 * (1 + seed % 3))
        results += tensors
    assert_bitwise_equal(*results)


@pytest.mark.parametrize(("wire", "error"), [("bf16", 2**-8), ("fp16", 2**-11), ("int8", 1 / 127), ("e3m0", 1 / 4)])
async def test_a_lossy_wire_stays_within_its_bound(wire, error):
    exact = mean_in_rank_order([random_tensors(rank, SHAPES) for rank in range(3)])
    tensors, _ = await averaged(3, wire=wire)
    largest = max(float(t.abs().max()) for r in range(3) for t in random_tensors(r, SHAPES).values() if t.numel())
    for name in SHAPES:  # once for the contributions, once for the mean
        assert torch.allclose(tensors[0][name], exact[name], rtol=0, atol=2 * error * largest), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_mean_of_4_bit_contributions_is_not_rounded_to_4_bits(algorithm):
    """1 and 0.5 are e3m0's own values, their mean is not: as e3m0 it would be 1."""
    tensors = [{"w": torch.full((300,), value)} for value in (1.0, 0.5)]
    async with open_ranks(MemoryStore(), 2, wire="e3m0", algorithm=algorithm) as ranks:
        await reduce_all(ranks, tensors)
    assert_bitwise_equal(*tensors)
    assert torch.allclose(tensors[0]["w"], torch.tensor(0.75), rtol=1 / 254, atol=0)


async def test_weights_count_and_exact_dtypes_stay_exact_whatever_the_wire():
    tensors = [{"w": torch.full((5,), float(rank)), "steps": torch.tensor(2**40 + rank)} for rank in range(3)]
    async with open_ranks(MemoryStore(), 3, wire="int8") as ranks:
        await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank], weight=[1, 2, 5][r.rank]))
    assert tensors[0]["steps"].item() == 2**40 + round((0 * 1 + 1 * 2 + 2 * 5) / 8)
    assert torch.allclose(tensors[0]["w"], torch.tensor(12 / 8), rtol=1 / 127)


async def test_models_of_half_precision_are_averaged_in_float32():
    tensors = [{"w": torch.tensor([v], dtype=torch.bfloat16)} for v in (256.0, 1.0, 1.0)]
    async with open_ranks(MemoryStore(), 3) as ranks:
        await reduce_all(ranks, tensors)
    assert tensors[0]["w"].item() == torch.tensor(258 / 3).bfloat16().item()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_rounds_follow_one_another_and_old_ones_are_deleted(algorithm):
    store = MemoryStore()
    async with open_ranks(store, 3, algorithm=algorithm) as ranks:
        for number in range(5):
            tensors = [{"w": torch.full((4,), float(rank + number))} for rank in range(3)]
            reports = await reduce_all(ranks, tensors)
            assert {r.round for r in reports} == {number}
            assert all(t["w"].tolist() == [number + 1.0] * 4 for t in tensors)
    rounds = {
        key.split("/")[1] for key in [k async for k in store.list("rounds/")] if not key.endswith("decision.json")
    }
    assert rounds <= {"00000002-0000", "00000003-0000", "00000004-0000"}


async def test_fragments_are_independent_and_may_run_at_once():
    tensors = [[{"w": torch.full((3,), float(rank * 10 + f))} for f in range(3)] for rank in range(2)]
    async with open_ranks(MemoryStore(), 2) as ranks, anyio.create_task_group() as tg:
        for rank in ranks:
            for fragment in range(3):
                tg.start_soon(lambda r, f: r.all_reduce(tensors[r.rank][f], fragment=f), rank, fragment)
    assert [t["w"][0].item() for t in tensors[0]] == [5.0, 6.0, 7.0]


async def test_the_report_accounts_for_the_bytes_of_the_algorithm():
    shapes = {"w": (1024 * 64,)}
    payload = 1024 * 64 * 4
    _, gathered = await averaged(4, shapes=shapes, algorithm="gather", chunk_bytes=4096)
    _, scattered = await averaged(4, shapes=shapes, algorithm="scatter", chunk_bytes=4096)
    small = 0.05 * payload  # headers, manifests, decisions
    assert gathered[0].bytes_sent == pytest.approx(payload, abs=small)
    assert gathered[0].bytes_received == pytest.approx(3 * payload, abs=small)
    assert scattered[0].bytes_sent == pytest.approx(1.25 * payload, abs=small)
    assert scattered[0].bytes_received == pytest.approx(1.5 * payload, abs=small)
    assert scattered[0].to_dict()["members"] == ["0-0", "1-0", "2-0", "3-0"]
    assert gathered[0].num_chunks == 64


# What cannot be averaged


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (
            {"w": torch.ones(5, 5), "b": torch.ones(2)},
            r"parameter 'w' is float32 \(4, 5\) on ranks 0, 1 but float32 \(5, 5\) on rank 2",
        ),
        (
            {"w": torch.ones(4, 5).half(), "b": torch.ones(2)},
            r"parameter 'w' is float32 .* on ranks 0, 1 but float16 .* on rank 2",
        ),
        ({"w": torch.ones(4, 5)}, r"parameter 'b' is float32 \(2,\) on ranks 0, 1 but missing on rank 2"),
        ({}, r"parameter 'b' .* missing on rank 2; parameter 'w' .* missing on rank 2"),
        ({f"p{i}": torch.ones(2000) for i in range(9)}, r"and 6 more parameters"),
    ],
    ids=["shape", "dtype", "missing", "nothing", "many"],
)
async def test_tensors_that_differ_are_refused_on_every_rank_by_name_and_rank(odd, message, algorithm):
    tensors = [{"w": torch.ones(4, 5), "b": torch.ones(2)}, {"w": torch.ones(4, 5), "b": torch.ones(2)}, odd]
    async with open_ranks(MemoryStore(), 3, algorithm=algorithm, chunk_bytes=1) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank]))
    assert all(isinstance(e, RoundRefusedError) for e in errors), errors
    assert len({str(e) for e in errors}) == 1
    with pytest.raises(RoundRefusedError, match=message):
        raise errors[0]


async def test_different_wires_and_different_bases_are_refused_by_rank():
    async with open_ranks(MemoryStore(), 3) as ranks:
        wires = await on_all(
            ranks, lambda r: r.all_reduce({"w": torch.ones(2)}, wire="int8" if r.rank == 1 else "bf16")
        )
    assert all("wire is 'bf16' on ranks 0, 2 but 'int8' on rank 1" in str(e) for e in wires)
    async with open_ranks(MemoryStore(), 3) as ranks:
        bases = await on_all(
            ranks, lambda r: r.all_reduce({"w": torch.ones(2)}, basis=b"odd" if r.rank == 1 else b"even")
        )
    assert all("different parameters (ranks 0, 2 / rank 1)" in str(e) for e in bases)


async def test_a_refused_round_leaves_the_tensors_as_they_were():
    tensors = [{"w": torch.full((3,), 1.0 + rank)} for rank in range(2)]
    async with open_ranks(MemoryStore(), 2) as ranks:
        await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank], basis=bytes([r.rank])))
    assert [t["w"].tolist() for t in tensors] == [[1, 1, 1], [2, 2, 2]]


# Who may take part


async def test_a_rank_taken_twice_is_refused_and_names_the_holder():
    store = MemoryStore()
    async with ObjectStoreAllReduce(store, rank=1, world_size=2):
        with pytest.raises(RankTakenError, match=r"rank 1 .* was taken by process \d+ on .*own rank"):
            async with ObjectStoreAllReduce(store, rank=1, world_size=2):
                pass


async def test_a_world_size_that_is_not_the_runs_is_refused():
    store = MemoryStore()
    async with ObjectStoreAllReduce(store, rank=0, world_size=2):
        with pytest.raises(WorldSizeError, match=r"rank 1 was given world_size=3, but the run at .* has 2 replicas"):
            async with ObjectStoreAllReduce(store, rank=1, world_size=3):
                pass


async def test_a_rank_that_never_joins_is_named_when_time_is_up():
    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=3, timeout=0.2) as alone:
        with pytest.raises(RoundTimeoutError, match=r"not complete after 0.2 s: ranks \[1, 2\] have not joined"):
            await alone.all_reduce({"w": torch.ones(2)})


async def test_a_rank_that_joined_but_does_not_contribute_is_named_when_time_is_up():
    tensors = {"w": torch.ones(2)}
    async with open_ranks(MemoryStore(), 3) as (first, second, _):
        errors = await on_all([first, second], lambda r: r.all_reduce(tensors, timeout=0.3))
    assert all("missing the contributions of ranks [2]" in str(e) for e in errors)
    assert tensors["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 4}, "rank must be an int from 0 to 3 .*not 4"),
        ({"rank": -1}, "not -1"),
        ({"rank": "0"}, "not '0'"),
        ({"world_size": 0}, "world_size must be an int >= 1, not 0"),
        ({"wire": "fp8"}, "wire must be one of fp32, .*not 'fp8'"),
        ({"algorithm": "tree"}, "'auto', 'gather' or 'scatter', not 'tree'"),
        ({"chunk_bytes": 0}, r"chunk_bytes must be 1 to 4294967296 .* not 0"),
        ({"chunk_bytes": -5}, "chunk_bytes must be 1 to .* not -5"),
        ({"chunk_bytes": 5 << 30}, "4 GiB: S3 takes 5 in one request.* not 5368709120"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0}, "timeout must be a finite number > 0, not 0"),
        ({"timeout": float("inf")}, "timeout must be a finite number"),
    ],
)
def test_bad_arguments_are_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ObjectStoreAllReduce(MemoryStore(), **{"rank": 0, "world_size": 4, **kwargs})


async def test_bad_arguments_of_a_call_are_refused_before_anything_is_written():
    store = MemoryStore()
    async with open_ranks(store, 1) as (rank,):
        before = [key async for key in store.list()]
        for bad in ({"weight": 0}, {"weight": float("nan")}, {"wire": "zip"}, {"timeout": -1}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                await rank.all_reduce({"w": torch.ones(1)}, **bad)
        assert [key async for key in store.list()] == before


# Failures and second attempts


async def test_a_round_that_timed_out_can_be_repeated_with_the_same_tensors():
    tensors = [{"w": torch.full((2000,), float(rank))} for rank in range(2)]
    async with open_ranks(MemoryStore(), 2, chunk_bytes=1) as (first, second):
        with pytest.raises(RoundTimeoutError):
            await first.all_reduce(tensors[0], timeout=0.2)
        assert [r.round for r in await reduce_all([first, second], tensors)] == [0, 0]
    assert tensors[0]["w"][0] == 0.5


async def test_a_repeated_round_with_other_tensors_is_refused():
    async with open_ranks(MemoryStore(), 2) as (first, _):
        with pytest.raises(RoundTimeoutError):
            await first.all_reduce({"w": torch.zeros(3)}, timeout=0.1)
        with pytest.raises(CollectiveError, match="rank 0 already contributed other values to round 0"):
            await first.all_reduce({"w": torch.ones(3)}, timeout=5)


async def test_two_all_reduces_of_one_fragment_at_once_are_refused():
    async with open_ranks(MemoryStore(), 2) as (first, _):
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(first.all_reduce, {"w": torch.ones(1)})
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(RuntimeError, match="still running"):
                    await first.all_reduce({"w": torch.ones(1)})
                tg.cancel_scope.cancel()
        assert not scope.cancelled_caught


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("flipped", "chunk is corrupted"),
        ("truncated", "chunk is truncated: 75 bytes, where its header says 76"),
        ("foreign", "chunk 0 from rank 1 should be .* but its key holds chunk 0 from rank 2"),
    ],
)
async def test_a_contribution_that_lies_there_damaged_is_refused_on_every_rank(what, message, algorithm):
    """By rank, key, and what is wrong with it; and at once, though the round is decided long before."""

    class Damaged(MemoryStore):
        async def put(self, key, data):
            data = bytearray(data)
            if "/1-0/000000" in key:
                if what == "flipped":
                    data[-1] ^= 1
                elif what == "truncated":
                    del data[-1]
                else:
                    data = pack_chunk(dataclasses.replace(unpack_chunk(data)[0], rank=2), torch.ones(3))
            await super().put(key, data)

    async with open_ranks(Damaged(), 3, algorithm=algorithm) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce({"w": torch.ones(3)}, timeout=20))
    for error in errors[:1] + errors[2:] if algorithm == "gather" else errors:  # gathering, rank 1 has no need of it
        with pytest.raises(
            RoundRefusedError, match=f"contribution of rank 1 cannot be read: rounds/.*/1-0/0.*{message}"
        ):
            raise error


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_object_larger_than_it_may_be_is_refused_without_reading_all_of_it(algorithm):
    class Bloated(MemoryStore):
        most_read = 0

        async def put(self, key, data):
            await super().put(key, bytes(data) + bytes(50 << 20) if "/1-0/000000" in key else data)

        async def get(self, key, **kwargs):
            data = await super().get(key, **kwargs)
            self.most_read = max(self.most_read, len(data))
            return data

    async with open_ranks(store := Bloated(), 2, algorithm=algorithm, chunk_bytes=1) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce({"w": torch.ones(4096)}, timeout=20))
    with pytest.raises(RoundRefusedError, match=r"contribution of rank 1 cannot be read.* chunk is too long"):
        raise errors[0]
    assert store.most_read < 1 << 20


async def test_a_chunk_damaged_on_its_way_is_read_again():
    class Damaging(MemoryStore):
        reads = 0

        async def get(self, key, **kwargs):
            data = bytearray(await super().get(key, **kwargs))
            if "/1-0/0" in key:
                self.reads += 1
                data[-1] ^= self.reads < 4
            return memoryview(data)

    store = Damaging()
    async with open_ranks(store, 2, algorithm="gather") as ranks:
        await reduce_all(ranks, tensors := [{"w": torch.full((3,), float(rank))} for rank in range(2)])
    assert store.reads == 4
    assert tensors[0]["w"].tolist() == [0.5] * 3


async def test_a_reduced_chunk_that_is_another_one_is_refused():
    class Mixed(MemoryStore):
        async def get(self, key, **kwargs):
            return await super().get(key.replace("/000003", "/000002") if "/reduced/" in key else key, **kwargs)

    tensors = [{"w": torch.ones(4 * 1024)} for _ in range(2)]
    ranks = open_ranks(Mixed(), 2, algorithm="scatter", chunk_bytes=1)
    async with ranks as (reader, owner), anyio.create_task_group() as tg:
        tg.start_soon(owner.all_reduce, tensors[1])
        with pytest.raises(ChunkError, match=r"chunk 3 .* but its key holds chunk 2"):
            await reader.all_reduce(tensors[0])
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_rank_still_reading_a_round_finds_it_while_others_are_in_the_next(algorithm):
    """What a rank wrote is deleted two rounds later, when no one can be reading it any more."""

    held = "/reduced/" if algorithm == "scatter" else "/0-0/0"  # what the slow rank reads of the fast one's
    fast_is_ahead, name = anyio.Event(), f"slow-reader-{algorithm}"

    class Slow(MemoryStore):
        async def get(self, key, **kwargs):
            if key.startswith("rounds/00000000") and held in key:
                await fast_is_ahead.wait()
            return await super().get(key, **kwargs)

    class Fast(MemoryStore):
        async def put(self, key, data):
            await super().put(key, data)
            if key == RoundKeys(1, 0).manifest(Member(0, 0)):
                fast_is_ahead.set()

    tensors = [[{"w": torch.full((2048,), float(r + n))} for n in range(2)] for r in range(2)]
    options = {"world_size": 2, "algorithm": algorithm, "chunk_bytes": 1, "timeout": 20}

    async def both_rounds(rank):
        for number in range(2):
            await rank.all_reduce(tensors[rank.rank][number])

    async with (
        ObjectStoreAllReduce(Fast(name), rank=0, **options) as fast,
        ObjectStoreAllReduce(Slow(name), rank=1, **options) as slow,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(both_rounds, fast)
        tg.start_soon(both_rounds, slow)
    assert fast_is_ahead.is_set()
    assert [t["w"][0].item() for t in tensors[1]] == [0.5, 1.5]


async def test_manifest_and_chunks_are_written_in_an_order_that_a_reader_can_trust():
    """The manifest comes after every chunk: whoever sees it may read all of them."""
    order = []

    class Recording(MemoryStore):
        async def put(self, key, data):
            await anyio.sleep(0.001 * (hash(key) % 5))
            await super().put(key, data)
            order.append(key)

    async with open_ranks(Recording(), 2, chunk_bytes=1) as ranks:
        await reduce_all(ranks, [random_tensors(rank, {"w": (9000,)}) for rank in range(2)])
    for member in (Member(0, 0), Member(1, 0)):
        mine = [key for key in order if f"/{member}/" in key or f"/{member}." in key]
        assert mine[-1] == RoundKeys(0, 0).manifest(member)
        assert len(mine) == 2 + 9  # payload.json, nine chunks, the manifest


@pytest.mark.parametrize("how", ["task", "scope"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_cancelled_at_any_await_a_round_can_be_repeated_and_comes_out_right(algorithm, how):
    """Also the other rank, which knows nothing of it, gets the mean; and every object there is whole."""
    shapes = {"w": (1500,)}
    expected = mean_in_rank_order([random_tensors(rank, shapes) for rank in range(2)])
    store, peer_tensors = MemoryStore(), {}
    async with (
        open_ranks(store, 2, algorithm=algorithm, chunk_bytes=1) as (rank, peer),
        anyio.create_task_group() as tg,
    ):

        def start_peer():
            peer_tensors.update(random_tensors(1, shapes))
            done = anyio.Event()

            async def run():
                await peer.all_reduce(peer_tensors)
                done.set()

            tg.start_soon(run)
            return done

        async def finish(report):
            nonlocal peer_done
            if report is None:
                tensors = random_tensors(0, shapes)
                await rank.all_reduce(tensors)
                assert_bitwise_equal(expected, tensors)
            await peer_done.wait()
            assert_bitwise_equal(expected, peer_tensors)
            for key in [k async for k in store.list("rounds/") if k.rsplit("/", 1)[1].isdecimal()]:
                unpack_chunk(await store.get(key))
            peer_done = start_peer()

        peer_done = start_peer()
        steps = await cancel_at_every_step(lambda: rank.all_reduce(random_tensors(0, shapes)), finish, how=how)
        tg.cancel_scope.cancel()
    assert steps > 20


class MissCountingStore(MemoryStore):
    """A store whose requests take a while to get there, which counts the chunks that were asked for too early."""

    misses = 0

    async def put(self, key, data):
        await anyio.sleep(0.02)
        await super().put(key, data)

    async def get(self, key, **options):
        await anyio.sleep(0.01)
        try:
            return await super().get(key, **options)
        except KeyNotFoundError:
            self.misses += key.rpartition("/")[2].isdecimal()
            raise


@pytest.mark.parametrize(("algorithm", "limit"), [("gather", 20), ("scatter", 100)])
async def test_few_chunks_are_asked_for_before_they_are_there(algorithm, limit):
    """Asking at once and backing off misses 130 and 500 times; waiting for one's own counterpart, 30 and 90 times."""
    store = MissCountingStore()
    async with open_ranks(store, 3, algorithm=algorithm, chunk_bytes=1) as ranks:
        await reduce_all(ranks, [random_tensors(rank, {"w": (48 * 1024,)}) for rank in range(3)])
    assert store.misses < limit
