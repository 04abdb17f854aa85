"""Rounds in the wrong order, from the wrong state, with values or settings that must not be averaged."""

import logging
from typing import Any

import anyio
import pytest
import torch

from aiodiloco.collective import Link, ObjectStoreAllReduce, all_reduce, place, settling
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.errors import (
    ChunkError,
    CollectiveError,
    RankTakenError,
    RoundRefusedError,
    RoundTimeoutError,
    StoreError,
)
from aiodiloco.store import MemoryStore
from tests.collective.ranks import on_all, open_ranks, reduce_all

OPTIONS = {"world_size": 2, "timeout": 20.0}


def ones(n=3):
    return {"w": torch.ones(n)}


async def test_a_round_that_is_over_is_refused_before_any_request():
    async with open_ranks(MemoryStore(), 1) as (rank,):
        await rank.all_reduce(ones(), round=4)
        with pytest.raises(ValueError, match="round must be an int >= 5, not 4; rounds that are over are not repeated"):
            await rank.all_reduce(ones(), round=4)
        assert (await rank.all_reduce(ones())).round == 5


@pytest.mark.parametrize("bad", [{"round": -1}, {"round": "3"}, {"fragment": -2}, {"fragment": 1.5}])
async def test_round_and_fragment_must_be_counts(bad):
    async with open_ranks(MemoryStore(), 1) as (rank,):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an int >= 0"):
            await rank.all_reduce(ones(), **bad)


async def test_different_settings_are_refused_by_name_and_rank():
    async with open_ranks(MemoryStore(), 3) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce(ones(), settings={"sync_every": "10" if r.rank else "20"}))
    assert all("sync_every is 10 on ranks 1, 2 but 20 on rank 0" in str(e) for e in errors), errors


async def test_tensors_tied_on_one_rank_only_are_refused_by_name():
    shared = torch.ones(3)
    tensors = [{"a": shared, "b": shared}, {"a": torch.ones(3), "b": torch.ones(3)}]
    async with open_ranks(MemoryStore(), 2) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank]))
    assert all(isinstance(e, RoundRefusedError) and "tied to 'a' on rank 0 but" in str(e) for e in errors), errors


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
@pytest.mark.parametrize(
    ("wire", "value"),
    [
        ("fp32", float("nan")),
        ("int8", float("inf")),
        ("bf16", float("-inf")),
        ("fp16", 70_000.0),
        ("e3m0", float("nan")),
        ("e3m0", float("-inf")),
    ],
)
async def test_values_that_are_not_finite_on_the_wire_are_refused_by_rank_and_tensor(wire, value, algorithm):
    tensors = [{"bias": torch.ones(2), "weight": torch.ones(5000)} for _ in range(3)]
    tensors[1]["weight"][4321] = value
    async with open_ranks(MemoryStore(), 3, wire=wire, algorithm=algorithm, chunk_bytes=1) as ranks:
        errors = await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank]))
    assert all("NaN or infinite values from rank 1 (in 'weight')" in str(e) for e in errors), errors
    assert torch.equal(tensors[0]["weight"], torch.ones(5000))


@pytest.mark.parametrize("weight", [1e-50, 1e39, float("inf")])
async def test_weights_that_would_leave_float32_are_refused(weight):
    async with open_ranks(MemoryStore(), 1) as (rank,):
        with pytest.raises(ValueError, match=r"weight must be a finite number between 1e-20 and 1e\+20"):
            await rank.all_reduce(ones(), weight=weight)


async def test_a_contribution_to_another_call_is_an_error_at_once_even_after_the_decision():
    """A rank that makes its calls in another order than the others gets no mean, and no long wait either."""
    store = MemoryStore()
    async with open_ranks(store, 2, algorithm="gather") as (first, second):
        await reduce_all([first, second], [ones(), ones()])
        chunk = await store.get(RoundKeys(0, 0).chunk(Member(1, 0), 0))
        await store.put(RoundKeys(1, 0).chunk(Member(1, 0), 0), chunk)
        decision = await store.get(RoundKeys(0, 0).decision)
        await store.put(RoundKeys(1, 0).decision, decision)
        with pytest.raises(CollectiveError, match="holds a contribution of rank 1 to another all-reduce"):
            await first.all_reduce({"v": torch.ones(2)}, timeout=5)


# Joining and leaving


class Silent(MemoryStore):
    """Stops answering at one key."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    async def put_if_absent(self, key, data):
        if self.at in key:
            await anyio.sleep_forever()
        return await super().put_if_absent(key, data)


async def test_joining_a_store_that_stops_answering_is_bounded(monkeypatch):
    monkeypatch.setattr(place, "_ENTER_BOUND_S", 0.1)
    with pytest.raises(StoreError, match=r"did not answer within 0\.1 s"):
        async with ObjectStoreAllReduce(Silent("run.json"), rank=0, **OPTIONS):
            pass


async def test_a_rank_that_never_contributed_can_join_again():
    store = MemoryStore()
    for _ in range(2):
        async with ObjectStoreAllReduce(store, rank=0, **OPTIONS):
            pass


async def test_a_rank_that_contributed_and_left_cannot_come_back_under_the_prefix():
    store = MemoryStore()
    async with ObjectStoreAllReduce(store, rank=0, world_size=1) as rank:
        await rank.all_reduce(ones())
    with pytest.raises(RankTakenError, match="start a new run under a new prefix"):
        async with ObjectStoreAllReduce(store, rank=0, world_size=1):
            pass


async def test_an_all_reduce_outside_its_context_is_refused_and_one_inside_ends_with_it():
    rank = ObjectStoreAllReduce(MemoryStore(), rank=0, **OPTIONS)
    with pytest.raises(RuntimeError, match="not open"):
        await rank.all_reduce(ones())
    errors = []

    async def wait_for_a_peer():
        try:
            await rank.all_reduce(ones())
        except CollectiveError as exc:
            errors.append(str(exc))

    async with anyio.create_task_group() as tg, rank:
        tg.start_soon(wait_for_a_peer)
        await anyio.wait_all_tasks_blocked()
    assert errors == ["rank 0 left the run while round 0 was going on"]


# What a rank is told when a round does not come to its end


async def test_when_the_decider_is_gone_another_rank_decides(monkeypatch):
    """Rank 0 decides; killed after its manifest, it leaves a round that is whole but for that."""
    monkeypatch.setattr(settling, "_TURN_S", 0.05)

    class NoDecision(MemoryStore):
        async def put_if_absent(self, key, data):
            if key.endswith("decision.json"):
                await anyio.sleep_forever()
            return await super().put_if_absent(key, data)

    tensors = ones()
    async with (
        ObjectStoreAllReduce(NoDecision("decider"), rank=0, algorithm="gather", **OPTIONS) as decider,
        ObjectStoreAllReduce(MemoryStore("decider"), rank=1, algorithm="gather", **OPTIONS) as other,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(decider.all_reduce, {"w": torch.zeros(3)})
        await other.all_reduce(tensors)
        tg.cancel_scope.cancel()
    assert tensors["w"].tolist() == [0.5] * 3


async def test_a_long_wait_is_logged_with_whom_it_is_for(monkeypatch, caplog):
    monkeypatch.setattr(all_reduce, "_COMPLAIN_AFTER_S", 1.0)
    async with open_ranks(MemoryStore(), 3) as (first, second, _):
        with caplog.at_level(logging.WARNING):
            await on_all([first, second], lambda r: r.all_reduce(ones(), timeout=1.5))
    assert "round 0 of fragment 0 takes long: missing the contributions of ranks [2]" in caplog.text


async def test_a_prefix_deleted_under_a_round_is_said_so():
    store = MemoryStore()
    async with open_ranks(store, 2) as (first, _):
        for key in [key async for key in store.list("members/")]:
            await store.delete(key)
        with pytest.raises(RoundTimeoutError, match="was the prefix deleted"):
            await first.all_reduce(ones(), timeout=0.2)


async def test_the_cause_of_a_store_error_is_kept():
    class Full(MemoryStore):
        async def put(self, key, data):
            if key.startswith("rounds/"):
                try:
                    raise OSError(28, "No space left on device")
                except OSError as exc:
                    raise StoreError("the disk is full") from exc
            await super().put(key, data)

    async with open_ranks(Full(), 1) as (rank,):
        with pytest.raises(StoreError, match="the disk is full") as caught:
            await rank.all_reduce(ones())
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("key", "content"), [("run.json", b""), ("run.json", b"[]"), ("run.json", b"{}")])
async def test_a_broken_run_record_is_named(key, content):
    store = MemoryStore()
    await store.put(key, content)
    with pytest.raises(ChunkError, match=r"run\.json holds"):
        async with ObjectStoreAllReduce(store, rank=0, **OPTIONS):
            pass


async def test_fields_of_a_later_release_are_passed_over():
    store = MemoryStore()
    await store.put("run.json", b'{"version": 1, "n_replicas": 2, "policy": "quorum"}')
    async with ObjectStoreAllReduce(store, rank=0, **OPTIONS):
        pass


# What ranks learn of the way to the store


class SlowStore(MemoryStore):
    """A store on a link without latency, whose bandwidth is not much."""

    async def put(self, key, data):
        await anyio.sleep(len(data) / 20e6)
        await super().put(key, data)


async def test_the_algorithm_follows_what_the_ranks_measured_and_all_choose_alike():
    """Guessed, the latency of scatter's two further steps costs more than its fewer bytes save; measured, it is nil."""
    async with open_ranks(SlowStore(), 3) as ranks:
        rounds = [await reduce_all(ranks, [{"w": torch.ones(1_200_000)} for _ in ranks]) for _ in range(4)]
    assert [{report.algorithm for report in reports} for reports in rounds] == [
        {"gather"},  # nothing is known
        {"gather"},  # each rank knows its own link, and tells
        {"scatter"},
        {"scatter"},
    ]
    assert all(report.link.bandwidth < 1e9 for reports in rounds for report in reports)


async def test_a_link_that_is_given_is_believed():
    async with open_ranks(SlowStore(), 3, link=Link(latency_s=10.0)) as ranks:
        rounds = [await reduce_all(ranks, [{"w": torch.ones(1_200_000)} for _ in ranks]) for _ in range(3)]
    assert {report.algorithm for reports in rounds for report in reports} == {"gather"}


async def test_a_round_that_moves_next_to_nothing_measures_nothing():
    async with open_ranks(MemoryStore(), 2) as ranks:
        reports = await reduce_all(ranks, [ones(), ones()])
    assert [report.link for report in reports] == [None, None]


async def test_a_round_that_was_deleted_is_not_waited_for():
    """Nobody will write its objects again; the error comes at once, and says what helps."""
    store = MemoryStore()
    async with ObjectStoreAllReduce(store, rank=0, world_size=1) as rank:
        for _ in range(4):
            await rank.all_reduce({"a": torch.ones(3)})
        async for key in store.list("rounds/00000000-0000/0-0/"):
            await store.delete(key)
    async with ObjectStoreAllReduce(store, rank=0, world_size=1, incarnation=1, takes_over=True) as rank:
        with anyio.fail_after(20), pytest.raises(RoundTimeoutError, match=r"deleted.*checkpoint"):
            await rank.adopt({"a": torch.ones(3)}, round=0)


async def test_a_short_round_does_not_delete_the_same_objects_again():
    """What one round had no time for is the next one's work, else the first few keys would be all that ever go."""

    class Slow(MemoryStore):
        left = 0

        async def delete(self, key: str) -> None:
            if key.startswith("rounds/"):
                if not self.left:
                    await anyio.sleep_forever()
                self.left -= 1
                deleted.append(key)
            await super().delete(key)

    deleted: list[str] = []
    store = Slow()
    async with ObjectStoreAllReduce(store, rank=0, world_size=1, chunk_bytes=400) as rank:
        for _ in range(12):
            store.left = 3
            await rank.all_reduce({"a": torch.ones(5000)})
    assert len(deleted) > 6
    assert len(deleted) == len(set(deleted))


async def test_an_announcement_that_the_store_never_takes_is_an_error():
    class Stuck(MemoryStore):
        async def put(self, key: str, data: Any) -> None:
            if key.endswith(".announced"):
                await anyio.sleep_forever()
            await super().put(key, data)

    async with ObjectStoreAllReduce(Stuck(), rank=0, world_size=1, timeout=0.2) as rank:
        with anyio.fail_after(20), pytest.raises(StoreError, match=r"announcement within 0\.2 s"):
            await rank.announce(round=0)
