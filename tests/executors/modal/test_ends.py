"""Who waits for a replica's end relies on whoever asks for it, and goes on only when that changes."""

from __future__ import annotations

import asyncio
import time

import anyio

from aiodiloco.executors.modal.ends import Ends, Stage
from aiodiloco.executors.modal.orders import Orders
from aiodiloco.executors.modal.outcome import Asked
from aiodiloco.records import ReplicaResult, ReplicaStatus

_BOUND_S = 30.0
_ROW = ReplicaResult(0, ReplicaStatus.succeeded, exit_code=0)


def _while_asked_for(waiter) -> float:
    return float("inf") if any(waiter.call.asking.values()) else float("-inf")


async def _rely(ends: Ends, log: list[str], name: str) -> None:
    with ends.waiting("fc-1") as waiter:
        await waiter.rely_on_others(lambda: _while_asked_for(waiter))
        log.append(name if waiter.row is None else f"{name} knows")


async def test_who_relies_sleeps_on_while_the_asker_comes_further_and_goes_on_when_it_leaves() -> None:
    ends, log = Ends(), []
    async with anyio.create_task_group() as group:
        with ends.waiting("fc-1") as asker:
            with asker.asking(Stage.queued_poll):
                for name in ("one", "other"):
                    group.start_soon(_rely, ends, log, name)
                await anyio.wait_all_tasks_blocked()
            with asker.asking(Stage.sent_poll):
                await anyio.wait_all_tasks_blocked()
                assert log == []
            await anyio.wait_all_tasks_blocked()
            assert sorted(log) == ["one", "other"]


async def test_who_relies_learns_the_end_once_it_is_known() -> None:
    ends, log = Ends(), []
    async with anyio.create_task_group() as group:
        with ends.waiting("fc-1") as asker, asker.asking(Stage.sent_poll):
            group.start_soon(_rely, ends, log, "one")
            await anyio.wait_all_tasks_blocked()
            ends.tell("fc-1", None)
            await anyio.wait_all_tasks_blocked()
            assert log == []
            ends.tell("fc-1", _ROW)
            await anyio.wait_all_tasks_blocked()
            assert log == ["one knows"]
    assert ends.num_calls == 0


async def test_who_relies_until_a_time_goes_on_then() -> None:
    with Ends().waiting("fc-1") as waiter:
        latest = time.monotonic() + 0.05
        with anyio.fail_after(_BOUND_S):
            await waiter.rely_on_others(lambda: latest)
        assert time.monotonic() >= latest - 0.01


def test_who_relies_learns_the_end_from_another_thread() -> None:
    ends, log = Ends(), []

    async def rely() -> None:
        with ends.waiting("fc-1") as asker, asker.asking(Stage.sent_poll):
            async with anyio.create_task_group() as group:
                group.start_soon(_rely, ends, log, "one")
                await anyio.wait_all_tasks_blocked()
                await asyncio.to_thread(ends.tell, "fc-1", _ROW)

    with_bound = asyncio.wait_for(rely(), _BOUND_S)
    asyncio.run(_awaiting(with_bound))
    assert log == ["one knows"]


async def _awaiting(awaitable) -> None:
    await awaitable


def test_orders_are_remembered_for_those_that_were_told_last() -> None:
    orders = Orders(most=2)
    orders.note("fc-1", Asked.to_be_killed)
    orders.note("fc-1", Asked.to_end)
    assert orders.asked_of("fc-1") is Asked.to_be_killed
    assert not orders.is_accepted("fc-1")
    orders.note_accepted("fc-1")
    assert orders.is_accepted("fc-1")
    orders.note("fc-2", Asked.to_end)
    orders.note("fc-1", Asked.to_end)
    orders.note("fc-3", Asked.to_end)
    orders.note_accepted("fc-2")
    assert [orders.asked_of(f"fc-{n}") for n in (1, 2, 3)] == [Asked.to_be_killed, Asked.nothing, Asked.to_end]
    assert not orders.is_accepted("fc-2")
