"""Several replicas save one checkpoint; anyone reads it whole, or not at all."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
import torch

from aiodiloco.checkpoint import (
    Snapshot,
    find_manifest,
    list_rounds,
    load,
    load_checkpoint,
    load_latest,
    prune,
    save_share,
    take_share,
)
from aiodiloco.checkpoint.layout import CheckpointKeys
from aiodiloco.errors import CheckpointError, StoreError
from aiodiloco.store import MemoryStore

WORLD = 3


def snapshot(number: int, rank: int) -> Snapshot:
    """What replica `rank` would save after `number` rounds: the outer state is the same on all."""
    generator = torch.Generator().manual_seed(number)
    parameters = {name: torch.randn(size, generator=generator) for name, size in [("a", 7), ("b", 1), ("c", 100)]}
    momenta = {index: {"momentum_buffer": torch.randn(3, generator=generator)} for index in range(3)}
    outer = {"parameters": parameters, "optimizer": {"state": momenta, "param_groups": [{"lr": 0.7, "params": [0]}]}}
    model = {
        "dtypes": {"a": "bfloat16", "b": "float32", "c": "float32"},
        "tied": {"head": "a"},
        "buffers": {"count": torch.tensor(number)},
    }
    frozen = {"frozen": torch.arange(5)}
    return Snapshot(
        0, number, 20 * number, outer, model, frozen, {"rng": torch.full((4,), rank + 1), "position": 100 + rank}
    )


async def save(store: MemoryStore, number: int, ranks: Any = range(WORLD)) -> list[bool]:
    workers = anyio.CapacityLimiter(2)
    shares = [take_share(snapshot(number, rank), rank=rank, part=rank, num_parts=WORLD) for rank in ranks]
    return [await save_share(store, share, workers) for share in shares]


async def test_the_last_writer_makes_it_a_checkpoint() -> None:
    """Before that there is none, and what is read is what was saved, each rank's own with it."""
    store = MemoryStore()
    assert await save(store, 4, [2, 0]) == [False, False]
    with pytest.raises(CheckpointError, match="no complete checkpoint under memory://"):
        await find_manifest(store)
    assert await save(store, 4, [1]) == [True]
    for rank in range(WORLD):
        loaded = await load(store, await find_manifest(store), rank=rank)
        assert (loaded.round, loaded.inner_step) == (4, 80)
        saved: Any = snapshot(4, rank).outer
        assert loaded.outer["parameters"].keys() == saved["parameters"].keys()
        for name, tensor in saved["parameters"].items():
            assert torch.equal(loaded.outer["parameters"][name], tensor)
        for index, state in saved["optimizer"]["state"].items():
            assert torch.equal(loaded.outer["optimizer"]["state"][index]["momentum_buffer"], state["momentum_buffer"])
        assert loaded.replica["position"] == 100 + rank
        assert loaded.replica["rng"].tolist() == [rank + 1] * 4


async def test_training_may_go_on_while_a_share_is_written() -> None:
    """What is written is what was there when the share was taken."""
    store, workers = MemoryStore(), anyio.CapacityLimiter(2)
    taken: Any = snapshot(1, 0)
    share = take_share(taken, rank=0, part=0, num_parts=1)
    for tensor in [*taken.outer["parameters"].values(), taken.replica["rng"]]:
        tensor.zero_()
    assert await save_share(store, share, workers)
    loaded = await load(store, await find_manifest(store), rank=0)
    assert torch.equal(loaded.outer["parameters"]["c"], snapshot(1, 0).outer["parameters"]["c"])  # type: ignore[index]
    assert loaded.replica["rng"].tolist() == [1] * 4


async def test_many_writers_at_once_make_one() -> None:
    """Whatever the order, at least one of them sees that it is whole."""
    store = MemoryStore()
    done: list[bool] = []

    async def write(rank: int) -> None:
        done.extend(await save(store, 1, [rank]))

    async with anyio.create_task_group() as tg:
        for rank in range(WORLD):
            tg.start_soon(write, rank)
    assert any(done)
    assert await list_rounds(store) == [1]


async def test_load_checkpoint_gives_a_state_dict_without_a_run() -> None:
    """In the model's dtypes, tied names and untrained tensors included; the latest unless one is named."""
    store = MemoryStore()
    await save(store, 1)
    await save(store, 2)
    await save(store, 3, [0])
    latest, first = await load_checkpoint(store), await load_checkpoint(store, round=1)
    saved: Any = snapshot(2, 0).outer
    assert latest.keys() == {"a", "b", "c", "head", "count", "frozen"}
    assert torch.equal(latest["head"], saved["parameters"]["a"].to(torch.bfloat16))
    assert torch.equal(latest["c"], saved["parameters"]["c"])
    assert not torch.equal(first["c"], latest["c"])
    with pytest.raises(CheckpointError, match=r"round 3 under .*: there are \[1, 2\]"):
        await load_checkpoint(store, round=3)


async def test_what_never_changes_is_sent_once() -> None:
    """Frozen weights may be most of a model: not even a conditional write, which sends all of it, is made twice."""
    sent: list[str] = []

    class Watched(MemoryStore):
        async def put_if_absent(self, key: str, data: Any) -> bool:
            sent.append(key)
            return await super().put_if_absent(key, data)

    store = Watched()
    for number in range(1, 4):
        await save(store, number)
    assert len([key for key in sent if key.startswith("checkpoints/frozen/")]) == 1
    assert (await load_checkpoint(store, round=3))["frozen"].tolist() == [0, 1, 2, 3, 4]
    assert len([key async for key in store.list("checkpoints/frozen/")]) == 1


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "longer"])
async def test_damage_is_named(damage: str) -> None:
    """By the object, before anything is made of its bytes."""
    store = MemoryStore()
    await save(store, 1)
    key = CheckpointKeys(0, 1).outer(1, 0)
    data = bytearray(await store.get(key))
    if damage == "missing":
        await store.delete(key)
    else:
        data[-1] ^= 1
        await store.put(key, {"short": data[:-1], "flipped": data, "longer": data + b"x"}[damage])
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        await load_checkpoint(store)


async def test_saving_again_after_a_cancellation_anywhere_ends_in_the_same_checkpoint() -> None:
    """Every object's bytes are the same whoever writes them, and however often."""
    whole = MemoryStore()
    await save(whole, 1)
    expected = {key: bytes(await whole.get(key)) async for key in whole.list()}
    for steps in range(0, 60, 4):
        store = MemoryStore()
        async with anyio.create_task_group() as tg:
            tg.start_soon(partial(save, store, 1))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tg.cancel_scope.cancel()
        await save(store, 1)
        assert {key: bytes(await store.get(key)) async for key in store.list()} == expected


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_writer_that_comes_back_with_another_state_of_its_own_breaks_nothing(is_first: bool) -> None:
    """It restored an older one, so its optimizer and buffers are others; the manifest may be there already, or not."""
    store, workers = MemoryStore(), anyio.CapacityLimiter(2)

    def come_back() -> Any:
        again = snapshot(1, 0)
        again.model["buffers"]["count"] = torch.tensor(77)  # type: ignore[index]
        again.replica["rng"] = torch.full((4,), 77)  # type: ignore[index]
        return save_share(store, take_share(again, rank=0, part=0, num_parts=WORLD), workers)

    await save(store, 1, [0, 1] if is_first else range(WORLD))
    await come_back()
    if is_first:
        await save(store, 1, [2])
    value = 77 if is_first else 1
    loaded = await load(store, await find_manifest(store), rank=0)
    assert loaded.replica["rng"].tolist() == [value] * 4
    assert int((await load_checkpoint(store))["count"]) == value


async def test_a_large_state_of_its_own_is_cut_into_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer's state is twice the model: written as one object, it would be in memory once more."""
    monkeypatch.setattr("aiodiloco.checkpoint.save._MOST_FILE_BYTES", 1000)
    store, workers = MemoryStore(), anyio.CapacityLimiter(2)
    moments = {index: torch.full((100,), float(index)) for index in range(10)}
    taken = Snapshot(0, 1, 20, {"parameters": {"a": torch.zeros(3)}}, replica={"state": moments, "position": 5})
    assert await save_share(store, take_share(taken, rank=0, part=0, num_parts=1), workers)
    sizes = [len(await store.get(key)) async for key in store.list(CheckpointKeys(0, 1).prefix) if "replica-" in key]
    assert len(sizes) == 5
    assert max(sizes) < 4000
    loaded = await load(store, await find_manifest(store), rank=0)
    assert loaded.replica["position"] == 5
    assert all(torch.equal(loaded.replica["state"][index], moment) for index, moment in moments.items())


async def test_prune_keeps_the_latest_whole_ones_and_what_is_being_written() -> None:
    """Incomplete ones older than those will never be whole; frozen weights stay, all checkpoints need them."""
    store = MemoryStore()
    await save(store, 1)
    await save(store, 2, [0])
    for number in (3, 4):
        await save(store, number)
    await save(store, 5, [1])
    await prune(store, keep=2)
    assert await list_rounds(store) == [3, 4]
    left = {key.split("/")[2] async for key in store.list("checkpoints/0000/")}
    assert left == {"00000003", "00000004", "00000005"}
    await load_checkpoint(store, round=3)


async def test_a_pruned_checkpoint_is_never_half_there() -> None:
    """Its manifest goes first: who lists checkpoints meanwhile finds none that cannot be read."""
    deleted: list[str] = []

    class Watched(MemoryStore):
        async def delete(self, key: str) -> None:
            deleted.append(key)
            await super().delete(key)

    store = Watched()
    for number in (1, 2):
        await save(store, number)
    await prune(store, keep=1)
    assert deleted[0] == CheckpointKeys(0, 1).manifest
    assert len(deleted) > 5


async def test_where_the_latest_cannot_be_read_the_one_before_is(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning that names what is damaged; by number, only the one asked for will do."""
    store = MemoryStore()
    for number in (1, 2):
        await save(store, number)
    damaged = CheckpointKeys(0, 2).outer(1, 0)
    await store.delete(damaged)
    loaded = await load_latest(store, rank=1)
    assert (loaded.round, loaded.replica["position"]) == (1, 101)
    assert f"{damaged} is missing" in caplog.text
    assert "going on from the checkpoint of round 1" in caplog.text
    assert int((await load_checkpoint(store))["count"]) == 1
    with pytest.raises(CheckpointError, match="missing"):
        await load_checkpoint(store, round=2)


@pytest.mark.parametrize("damage", ["manifest", "outer"])
async def test_where_none_can_be_read_all_that_were_tried_are_named(damage: str) -> None:
    store = MemoryStore()
    for number in (1, 2):
        await save(store, number)
        keys = CheckpointKeys(0, number)
        await store.put(keys.manifest if damage == "manifest" else keys.outer(0, 0), b"rubbish")
    with pytest.raises(CheckpointError, match=r"can be read\. Tried round 2: .*round 1: "):
        await load_latest(store)


async def test_a_store_that_fails_for_one_object_is_no_reason_to_give_up() -> None:
    class Unreadable(MemoryStore):
        async def get(self, key: str, **options: Any) -> memoryview:
            if key.startswith(CheckpointKeys(0, 2).prefix) and "outer-" in key:
                raise StoreError("input/output error")
            return await super().get(key, **options)

    store = Unreadable()
    for number in (1, 2):
        await save(store, number)
    assert (await load_latest(store)).round == 1
