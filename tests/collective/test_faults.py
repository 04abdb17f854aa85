"""A store and a network that fail all the time: every mean is right to the bit, or the round is refused by name."""

from collections import Counter

import anyio
import pytest
import torch

from aiodiloco.codec import wire_names
from aiodiloco.collective import ObjectStoreAllReduce, all_reduce, place
from aiodiloco.errors import AiodilocoError, ChunkError, RoundRefusedError, RoundTimeoutError, StoreUnavailableError
from aiodiloco.store import MemoryStore
from aiodiloco.testing import Faults, FaultyStore
from tests.collective.ranks import open_ranks, random_tensors, reduce_all

SHAPES = {"w": (2100,), "steps": ()}
PASSING = Faults(unavailable=0.3, lost_reply=0.1, truncated=0.05, flipped=0.01)


async def outcomes(name, world_size, faults, seed, only="", **options):
    """Return per rank the averaged tensors or the error, and how often each fault was injected."""
    tensors = [random_tensors(rank, SHAPES) for rank in range(world_size)]
    stores = [FaultyStore(MemoryStore(name), faults, seed=f"{seed}-{r}", only=only) for r in range(world_size)]
    found = list(tensors)

    async def run(rank):
        options_of_rank = {"rank": rank, "world_size": world_size, "timeout": 20, "chunk_bytes": 1, **options}
        try:
            async with ObjectStoreAllReduce(stores[rank], **options_of_rank) as opened:
                await opened.all_reduce(tensors[rank])
        except AiodilocoError as exc:
            found[rank] = exc

    async with anyio.create_task_group() as tg:
        for rank in range(world_size):
            tg.start_soon(run, rank)
    return found, {fault: sum(s.injected.get(fault, 0) for s in stores) for fault in vars(faults)}


async def right_mean(world_size, **options):
    tensors = [random_tensors(rank, SHAPES) for rank in range(world_size)]
    async with open_ranks(MemoryStore(), world_size, chunk_bytes=1, **options) as ranks:
        await reduce_all(ranks, tensors)
    return tensors[0]


def is_same(tensors, expected):
    return all(
        torch.equal(tensors[k].view(-1).view(torch.uint8), expected[k].view(-1).view(torch.uint8)) for k in SHAPES
    )


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
@pytest.mark.parametrize("world_size", [2, 4])
async def test_faults_that_pass_change_no_bit(world_size, algorithm):
    """30 seeds, over which the wires take turns; benchmarks/faults.py gives each wire 30."""
    expected = {wire: await right_mean(world_size, wire=wire, algorithm=algorithm) for wire in wire_names()}
    total = Counter()

    async def run(seed):
        wire = wire_names()[seed % len(expected)]
        name = f"{world_size}-{algorithm}-{seed}"
        found, injected = await outcomes(name, world_size, PASSING, seed, wire=wire, algorithm=algorithm)
        assert not [outcome for outcome in found if isinstance(outcome, Exception)]
        assert all(is_same(outcome, expected[wire]) for outcome in found)
        total.update(injected)

    async with anyio.create_task_group() as tg:
        for seed in range(30):
            tg.start_soon(run, seed)
    assert all(total[fault] for fault in ("unavailable", "lost_reply", "truncated", "flipped"))


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
async def test_objects_damaged_for_good_are_refused_by_name_or_not_needed(algorithm):
    """One write in thirty stores a flipped bit. No rank gets a wrong mean; who gets none is told what is damaged."""
    expected, refused, right = await right_mean(3, algorithm=algorithm), 0, 0

    async def run(seed):
        nonlocal refused, right
        faults = {"faults": Faults(spoiled=0.03), "only": "rounds/", "seed": seed}
        found, _ = await outcomes(f"spoiled-{algorithm}-{seed}", 3, algorithm=algorithm, **faults)
        for outcome in found:
            if isinstance(outcome, dict):
                right += 1
                assert is_same(outcome, expected)
            else:
                refused += 1
                assert isinstance(outcome, RoundRefusedError | ChunkError), repr(outcome)
                assert "rounds/" in str(outcome)

    async with anyio.create_task_group() as tg:
        for seed in range(20):
            tg.start_soon(run, seed)
    assert refused
    assert right


async def test_a_store_that_is_gone_for_good_is_named_with_its_error_when_time_is_up(monkeypatch):
    monkeypatch.setattr(all_reduce, "_ASKING_PATIENCE_S", 0.1)

    class Dead(MemoryStore):
        dead = False

        async def get(self, key, **kwargs):
            if self.dead:
                raise StoreUnavailableError("connection refused")
            return await super().get(key, **kwargs)

        async def list(self, prefix="", *, start_after=""):
            if self.dead:
                raise StoreUnavailableError("connection refused")
            async for key in super().list(prefix, start_after=start_after):
                yield key

    store = Dead()
    async with ObjectStoreAllReduce(store, rank=0, world_size=2) as rank:
        store.dead = True
        with pytest.raises(RoundTimeoutError, match=r"not complete after 0.3 s: .* connection refused"):
            await rank.all_reduce({"w": torch.ones(3)}, timeout=0.3)
        store.dead = False


async def test_a_store_that_is_out_of_order_when_a_rank_joins_is_named_with_its_error(monkeypatch):
    monkeypatch.setattr(place, "_PATIENCE_S", 0.1)
    with pytest.raises(StoreUnavailableError, match="503"):
        async with ObjectStoreAllReduce(FaultyStore(MemoryStore(), Faults(unavailable=1.0)), rank=0, world_size=2):
            pass
