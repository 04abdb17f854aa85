"""What a rank wrote is deleted when nobody can need it: all of it, and in an order that never misleads."""

from __future__ import annotations

import anyio
import pytest

from aiodiloco.collective.decision import is_replayable
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.errors import StoreError
from aiodiloco.store import MemoryStore
from tests.collective.ranks import open_ranks, random_tensors, reduce_all


class Watched(MemoryStore):
    """Notes deletions, and refuses some."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []
        self.refuses = 0

    async def delete(self, key: str) -> None:
        if "rounds/" in key and self.refuses:
            self.refuses -= 1
            raise StoreError("not now")
        self.deleted.append(key)
        await super().delete(key)


async def run_rounds(store: MemoryStore, num_rounds: int) -> None:
    async with open_ranks(store, 2, chunk_bytes=4096) as ranks:
        for _ in range(num_rounds):
            await reduce_all(ranks, [random_tensors(rank, {"w": (5000,)}) for rank in range(2)])
            await anyio.sleep(0.01)


async def test_a_round_looks_deleted_before_any_of_it_is() -> None:
    """Who comes back in between must not take it for one that can be replayed."""
    store = Watched()
    await run_rounds(store, 4)
    for rank in range(2):
        mine = [key for key in store.deleted if f"/{rank}-0" in key and key.startswith("rounds/00000000")]
        assert mine[0] == RoundKeys(0, 0).manifest(Member(rank, 0))
        assert len(mine) > 4


@pytest.mark.parametrize("rank", range(2))
async def test_a_run_can_be_replayed_only_while_it_has_the_contributions_of_all(rank: int) -> None:
    store = MemoryStore()
    await run_rounds(store, 1)
    assert await is_replayable(store, [0, 1])
    await store.delete(RoundKeys(0, 0).manifest(Member(rank, 0)))
    assert not await is_replayable(store, [0, 1])


async def test_what_could_not_be_deleted_is_deleted_later(caplog: pytest.LogCaptureFixture) -> None:
    store = Watched()
    store.refuses = 2
    await run_rounds(store, 5)
    left = {key.split("/")[1] for key in [k async for k in store.list("rounds/")] if not key.endswith("decision.json")}
    assert left <= {f"{number:08d}-0000" for number in (3, 4)}
    assert "could not delete old rounds: not now" in caplog.text
