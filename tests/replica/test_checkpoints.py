"""Checkpoints of a run, written by its replicas while they train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
import torch

from aiodiloco import load_checkpoint, read_events
from aiodiloco.checkpoint import list_rounds
from aiodiloco.errors import CheckpointError
from aiodiloco.replica import join
from aiodiloco.replica.checkpoints import recover
from aiodiloco.store import MemoryStore, open_store
from tests.diloco.models import make_model, train_step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORLD = 3


async def train(uri: str, rank: int, total: int, **options: Any) -> dict[str, torch.Tensor]:
    """Return the outer parameters after `total` steps."""
    async with join(uri, rank=rank, world_size=WORLD) as replica:
        model = make_model()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        diloco = replica.diloco(model, inner, sync_every=5, **options)
        for step in diloco.steps(total):
            await diloco.step(loss=train_step(model, inner, rank, step))
        with diloco.outer_weights():
            return {name: value.clone() for name, value in model.state_dict().items()}


async def train_all(uri: str, total: int, **options: Any) -> dict[str, torch.Tensor]:
    results: dict[int, dict[str, torch.Tensor]] = {}

    async def run(rank: int) -> None:
        results[rank] = await train(uri, rank, total, **options)

    async with anyio.create_task_group() as tg:
        for rank in range(WORLD):
            tg.start_soon(run, rank)
    return results[0]


async def test_a_run_leaves_its_last_two_checkpoints_and_they_are_its_outer_weights() -> None:
    """Whole ones only, of the rounds asked for; anyone with the URI loads them into the model."""
    uri = "memory://checkpoints-left"
    final = await train_all(uri, 40, checkpoint_every=2)
    async with open_store(uri) as store:
        assert await list_rounds(store) == [6, 8]
        loaded = await load_checkpoint(uri)
        events, _ = await read_events(store)
    kinds = [event.data for event in events if event.kind == "checkpoint"]
    assert loaded.keys() == final.keys()
    for name, value in final.items():
        assert torch.equal(loaded[name], value)
    make_model(seed=1).load_state_dict(loaded)
    assert {(data["round"], data["step"]) for data in kinds} == {(2, 10), (4, 20), (6, 30), (8, 40)}
    assert len(kinds) == 4 * WORLD


async def test_a_store_that_refuses_checkpoints_costs_no_training(caplog: pytest.LogCaptureFixture) -> None:
    """It is said in the log, and the rounds go on."""

    final = await train_all("memory://checkpoints-fine", 20)
    MemoryStore("checkpoints-refused")
    original = MemoryStore.put

    async def refuse(self: MemoryStore, key: str, data: Any) -> None:
        if key.startswith("checkpoints/") or "/checkpoints/" in key:
            from aiodiloco.errors import StoreError

            raise StoreError("the disk is full")
        await original(self, key, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "put", refuse)
        refused = await train_all("memory://checkpoints-refused", 20, checkpoint_every=2)
    for name, value in final.items():
        assert torch.equal(refused[name], value)
    assert "the disk is full" in caplog.text


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
async def test_senseless_intervals_are_refused(every: Any) -> None:
    async with join("memory://checkpoints-every", rank=0, world_size=1) as replica:
        model = make_model()
        with pytest.raises(ValueError, match="checkpoint_every must be an int >= 1"):
            replica.diloco(model, torch.optim.SGD(model.parameters(), lr=0.1), sync_every=5, checkpoint_every=every)


@pytest.mark.parametrize("every", [(2, None), (None, 2)])
async def test_a_model_without_checkpoints_beside_one_with_them_is_refused(every: Any) -> None:
    """A rank that came back would have the one, and the other's rounds would be deleted."""
    async with join(f"memory://checkpoints-all-{every[0]}", rank=0, world_size=1) as replica:
        models = [make_model(), make_model()]
        inner = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
        replica.diloco(models[0], inner[0], sync_every=5, checkpoint_every=every[0])
        with pytest.raises(ValueError, match="for all models or for none"):
            replica.diloco(models[1], inner[1], sync_every=5, checkpoint_every=every[1])


async def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way_to_the_next() -> None:
    """Reading takes long, and the others train on: the run is then further, not broken."""
    uri = "memory://checkpoint-deleted-meanwhile"
    await train_all(uri, 40, checkpoint_every=2)

    class Interrupted(MemoryStore):
        """A later checkpoint completes, and this one goes, just when its first object is asked for."""

        is_first = True

        async def get(self, key: str, **options: Any) -> memoryview:
            if "/outer-" in key and self.is_first:
                self.is_first = False
                hidden.clear()
                await self.delete("checkpoints/complete/0000/00000006.json")
                for old in [k async for k in self.list("checkpoints/0000/00000006/")]:
                    await self.delete(old)
            return await super().get(key, **options)

        async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
            async for key in super().list(prefix, start_after=start_after):
                if key not in hidden:
                    yield key

    hidden = {"checkpoints/complete/0000/00000008.json"}
    recovered = await recover(Interrupted("checkpoint-deleted-meanwhile"), 0)
    assert (recovered[0].loaded.round, recovered[0].kept_from) == (8, 8)


async def test_a_damaged_checkpoint_is_an_error_and_not_read_for_ever() -> None:
    uri = "memory://checkpoint-damaged"
    await train_all(uri, 10, checkpoint_every=2)
    store = MemoryStore("checkpoint-damaged")
    await store.delete("checkpoints/0000/00000002/outer-00000-0000.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        await recover(store, 0)


async def test_a_last_share_that_is_not_written_in_time_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiodiloco.replica.checkpoints._LAST_WRITE_S", 0.2)

    class Stuck(MemoryStore):
        async def put(self, key: str, data: Any) -> None:
            if key.startswith("checkpoints/"):
                await anyio.sleep_forever()
            await super().put(key, data)

    async with join(Stuck(), rank=0, world_size=1) as replica:
        model = make_model()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        diloco = replica.diloco(model, inner, sync_every=5, checkpoint_every=1)
        for step in diloco.steps(5):
            await diloco.step(loss=train_step(model, inner, 0, step))
    assert "the last checkpoint lacks this replica's share" in caplog.text
