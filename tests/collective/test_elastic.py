"""Rounds that go on without those who are late or dead, in virtual time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import pytest
import torch

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.plan import Link
from aiodiloco.collective.settling import decides_after_s
from aiodiloco.errors import RankTakenError, RoundGoneError, RoundRefusedError, RoundTimeoutError
from aiodiloco.store import MemoryStore
from aiodiloco.testing.simulation import run_in_virtual_time

GRACE_S = 20.0


def tensors(rank: int, number: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * number + rank)
    return {"w": torch.randn(5000, generator=generator), "b": torch.randn(3, generator=generator)}


def mean_of(ranks: list[int], number: int = 0) -> torch.Tensor:
    total = torch.zeros(5000)
    for rank in ranks:
        total += tensors(rank, number)["w"]
    return total / len(ranks)


def open_rank(store: MemoryStore, rank: int, world_size: int = 4, **options: Any) -> ObjectStoreAllReduce:
    options = {"min_replicas": 2, "grace": GRACE_S, "chunk_bytes": 1, **options}
    return ObjectStoreAllReduce(store, rank=rank, world_size=world_size, **options)


def simulate(main: Any, *args: Any) -> Any:
    return run_in_virtual_time(partial(main, *args))


async def reduce_together(ranks: list[ObjectStoreAllReduce], number: int) -> dict[int, Any]:
    """Have `ranks` take part in round `number`; return rank -> (mean, report)."""
    results: dict[int, Any] = {}

    async def one(rank: ObjectStoreAllReduce) -> None:
        mine = tensors(rank.rank, number)
        report = await rank.all_reduce(mine)
        results[rank.rank] = mine["w"], report

    async with anyio.create_task_group() as tg:
        for rank in ranks:
            tg.start_soon(one, rank)
    return results


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
@pytest.mark.parametrize("dead", [0, 2])
def test_a_dead_rank_costs_one_grace_period_and_no_more(algorithm: str, dead: int) -> None:
    """Also when it is the one that decides first. The round after expects only who was in the last one."""

    async def main() -> None:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, algorithm=algorithm)) for r in range(4)]
            await reduce_together(ranks, 0)
            alive = [rank for rank in ranks if rank.rank != dead]
            times = []
            for number in (1, 2):
                began = anyio.current_time()
                results = await reduce_together(alive, number)
                times.append(anyio.current_time() - began)
                for mean, report in results.values():
                    assert torch.equal(mean, mean_of([rank.rank for rank in alive], number))
                    assert [member.rank for member in report.members] == [rank.rank for rank in alive]
                    assert report.included
                    assert report.to_dict()["absent"] == [dead]
        assert GRACE_S <= times[0] < GRACE_S + 5
        assert times[1] < 5

    simulate(main)


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
def test_a_late_rank_gets_the_mean_without_being_in_it(algorithm: str) -> None:
    """And adopts what else was decided meanwhile; then it is in again."""

    async def main() -> None:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, algorithm=algorithm)) for r in range(3)]
            late, others = ranks[2], ranks[:2]
            for number in range(3):
                await reduce_together(others, number)
            mine = tensors(2)
            report = await late.all_reduce(mine)
            assert (report.included, report.round) == (False, 0)
            assert torch.equal(mine["w"], mean_of([0, 1]))
            for number in (1, 2):
                report = await late.adopt(mine, round=number)
                assert report is not None
                assert not report.included
                assert torch.equal(mine["w"], mean_of([0, 1], number))
                assert report.absent == (2, 3), "the world has four"
            assert await late.adopt(mine, round=3) is None
            await late.announce(round=3)
            results = await reduce_together(ranks, 3)
            assert [report.absent for _, report in results.values()] == [(3,)] * 3
            assert all(torch.equal(mean, mean_of([0, 1, 2], 3)) for mean, _ in results.values())

    simulate(main)


def test_an_announced_rank_is_waited_for() -> None:
    """As long as one that was in the round before; who comes unannounced is in if it is in time."""

    async def main(announces: bool) -> list[int]:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, 3)) for r in range(3)]
            await reduce_together(ranks[:2], 0)
            await ranks[2].adopt(tensors(2), round=0)
            if announces:
                await ranks[2].announce(round=1)
            async with anyio.create_task_group() as tg:
                tg.start_soon(reduce_together, ranks[:2], 1)
                await anyio.sleep(GRACE_S / 2)
                report = await ranks[2].all_reduce(tensors(2, 1))
        return [member.rank for member in report.members]

    assert simulate(main, True) == [0, 1, 2]
    assert simulate(main, False) == [0, 1]


@pytest.mark.parametrize("num_dead", [1, 2])
def test_the_block_of_an_owner_that_died_is_formed_by_others(num_dead: int) -> None:
    """It contributed, and was gone before it published its part of the mean."""

    class DiesAsOwner(MemoryStore):
        """A connection that is lost when the first reduced chunk is to be written."""

        async def put(self, key: str, data: Any) -> None:
            if "/reduced/" in key:
                await anyio.sleep_forever()
            await super().put(key, data)

    async def main() -> None:
        name = f"owners-{num_dead}"
        async with AsyncExitStack() as stack:
            tg = await stack.enter_async_context(anyio.create_task_group())
            alive = []
            for r in range(4):
                dies = 1 <= r <= num_dead
                store = DiesAsOwner(name) if dies else MemoryStore(name)
                rank = await stack.enter_async_context(open_rank(store, r, algorithm="scatter"))
                if dies:
                    tg.start_soon(rank.all_reduce, tensors(r))
                else:
                    alive.append(rank)
            results = await reduce_together(alive, 0)
            tg.cancel_scope.cancel()
        for mean, report in results.values():
            assert torch.equal(mean, mean_of([0, 1, 2, 3]))
            assert len(report.members) == 4
        assert anyio.current_time() < 60

    simulate(main)


def test_a_rank_that_comes_back_takes_over_and_the_old_process_is_out() -> None:
    """Whichever of the two was quicker: one contribution of a rank at most is in a round."""

    async def main() -> None:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            first, old = [await stack.enter_async_context(open_rank(store, r, 2)) for r in range(2)]
            await reduce_together([first, old], 0)
            again = await stack.enter_async_context(open_rank(store, 1, 2, takes_over=True))
            assert again.member == Member(1, 1)
            assert await again.adopt(tensors(1), round=0) is not None
            results: dict[str, Any] = {}

            async def zombie() -> None:
                with pytest.raises(RankTakenError, match="taken over by process 1-1"):
                    await old.all_reduce(tensors(1, 1))
                results["zombie"] = True

            async with anyio.create_task_group() as tg:
                tg.start_soon(zombie)
                results |= await reduce_together([first, again], 1)
        assert torch.equal(results[0][0], mean_of([0, 1], 1))
        assert [str(member) for member in results[0][1].members] == ["0-0", "1-1"]
        assert results["zombie"]

    simulate(main)


def test_without_a_quorum_nothing_is_decided() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_rank(store, 0, timeout=300.0) as first, open_rank(store, 1):
            with pytest.raises(RoundTimeoutError, match=r"ranks \[2, 3\] have not joined"):
                await first.all_reduce(tensors(0))
        assert await _decided(store, 0) is False

    simulate(main)


def test_of_hundreds_of_missing_ranks_the_first_few_are_named() -> None:
    async def main() -> None:
        async with open_rank(MemoryStore(), 0, 300, timeout=60.0) as first:
            with pytest.raises(RoundTimeoutError, match=r"\[1, 2, 3, 4, 5, 6, 7, 8\] and 291 more have not"):
                await first.all_reduce(tensors(0))

    simulate(main)


def test_poison_is_left_out_and_its_rank_gets_the_mean() -> None:
    """NaN, and with `max_norm_ratio` a norm out of all proportion; each is said by name."""

    async def main(value: float) -> None:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, max_norm_ratio=50)) for r in range(4)]
            mine = [tensors(r) for r in range(4)]
            mine[3]["w"][7] = value
            reports: dict[int, Any] = {}

            async def one(r: int) -> None:
                reports[r] = await ranks[r].all_reduce(mine[r])

            async with anyio.create_task_group() as tg:
                for r in range(4):
                    tg.start_soon(one, r)
        for r in range(4):
            assert torch.equal(mine[r]["w"], mean_of([0, 1, 2]))
            assert reports[r].included == (r != 3)
            assert reports[r].absent == (3,)
            assert list(reports[r].excluded) == ["3-0"]

    simulate(main, float("nan"))
    simulate(main, 1e9)


def test_a_rank_that_differs_from_the_majority_is_told_so_and_the_others_go_on() -> None:
    async def main() -> None:
        store = MemoryStore()
        results: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r)) for r in range(4)]

            async def differ() -> None:
                with pytest.raises(RoundRefusedError, match="differs"):
                    await ranks[3].all_reduce(tensors(3), basis=b"diverged")
                results["told"] = True

            async with anyio.create_task_group() as tg:
                tg.start_soon(differ)
                results |= await reduce_together(ranks[:3], 0)
        assert results["told"]
        assert torch.equal(results[0][0], mean_of([0, 1, 2]))

    simulate(main)


def test_a_rank_that_comes_back_with_another_state_is_told_so() -> None:
    """It was not expected, so the members are those that were; it must not wait for a mean of its own kind."""

    async def main() -> None:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, 3)) for r in range(3)]
            await reduce_together(ranks[:2], 0)
            await ranks[2].adopt(tensors(2), round=0)
            await ranks[2].announce(round=1)
            async with anyio.create_task_group() as tg:
                tg.start_soon(reduce_together, ranks[:2], 1)
                with pytest.raises(RoundRefusedError, match="differs"):
                    await ranks[2].all_reduce(tensors(2, 1), basis=b"diverged")
        assert anyio.current_time() < 30

    simulate(main)


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
@pytest.mark.parametrize("is_member", [True, False])
def test_a_round_that_is_deleted_while_it_is_read_is_no_reason_to_wait(algorithm: str, is_member: bool) -> None:
    """A member that stood still since it contributed, and one that catches up, are told within seconds."""

    class Held(MemoryStore):
        """Lets one rank read no values, as if it were very slow."""

        async def get(self, key: str, **options: Any) -> memoryview:
            if key[-6:].isdecimal() and not deleted.is_set():
                await deleted.wait()
            return await super().get(key, **options)

    deleted = anyio.Event()

    async def main() -> None:
        name = f"deleted-meanwhile-{algorithm}-{is_member}"
        store = MemoryStore(name)
        async with AsyncExitStack() as stack:
            fast = [await stack.enter_async_context(open_rank(store, r, 3, algorithm=algorithm)) for r in range(2)]
            slow = await stack.enter_async_context(open_rank(Held(name), 2, 3, algorithm=algorithm))

            async def take() -> None:
                with pytest.raises(RoundGoneError, match="rank 2 is too far behind"):
                    await (slow.all_reduce(tensors(2)) if is_member else slow.adopt(tensors(2), round=0))

            async with anyio.create_task_group() as tg:
                if is_member:
                    tg.start_soon(take)
                await reduce_together(fast, 0)
                if not is_member:
                    tg.start_soon(take)
                    await anyio.sleep(1)
                for key in [key async for key in store.list("rounds/") if not key.endswith("decision.json")]:
                    await store.delete(key)
                deleted.set()
        assert anyio.current_time() < GRACE_S + 30

    simulate(main)


def test_after_skipped_rounds_a_rank_plans_by_the_one_before() -> None:
    """Who planned by an older round's link would choose another algorithm, and be refused."""

    async def main() -> list[int]:
        store = MemoryStore()
        async with AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(open_rank(store, r, 3)) for r in range(3)]
            assert (await reduce_together(ranks, 0))[0][1].algorithm == "gather"
            for rank in ranks[:2]:
                rank._measured_link = Link(latency_s=1e-6, bandwidth=1e6)  # one on which scattering is worth it
            for number in (1, 2):
                await reduce_together(ranks[:2], number)
            await ranks[2].announce(round=3)
            results: dict[int, Any] = {}

            async def skip() -> None:
                results[2] = await ranks[2].all_reduce(tensors(2, 3), round=3)

            async with anyio.create_task_group() as tg:
                tg.start_soon(skip)
                await reduce_together(ranks[:2], 3)
        assert results[2].algorithm == "scatter"
        return [member.rank for member in results[2].members]

    assert simulate(main) == [0, 1, 2]


def test_a_large_run_whose_processes_all_were_replaced_decides_at_once() -> None:
    """Nobody who is there was expected, and yet somebody has the first turn."""

    async def main() -> float:
        store, world = MemoryStore(), 40
        options: dict[str, Any] = {"world_size": world, "min_replicas": None, "algorithm": "scatter"}
        for number in range(2):
            async with AsyncExitStack() as stack:
                ranks = [
                    open_rank(store, r, incarnation=number, takes_over=number > 0, **options) for r in range(world)
                ]
                for rank in ranks:
                    await stack.enter_async_context(rank)
                began = anyio.current_time()
                async with anyio.create_task_group() as tg:
                    for rank in ranks:
                        tg.start_soon(partial(rank.all_reduce, {"w": torch.ones(4)}, round=number))
        return anyio.current_time() - began

    assert simulate(main) < 10


def test_deciders_come_later_and_later_but_all_in_time() -> None:
    times = [decides_after_s(turn) for turn in range(1000)]
    assert times[:5] == [0, 1, 3, 6, 10]
    assert sum(time <= 60 for time in times) == 16
    assert sum(time <= 600 for time in times) > 300
    assert times == sorted(set(times))


async def _decided(store: MemoryStore, number: int) -> bool:
    return RoundKeys(number, 0).decision in [key async for key in store.list("rounds/")]
