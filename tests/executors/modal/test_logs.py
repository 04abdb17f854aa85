"""Following the log of a replica: every line once, in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
import weakref

import anyio
import anyio.to_thread
import pytest

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.calls import Bell, Calls
from aiodiloco.executors.modal import ModalSpawnExecutor, entries, feeds, logs
from aiodiloco.records import ReplicaHandle

from . import functions

_BOUND_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def on_modal(session_client):
    with functions.app.run(client=session_client):
        yield


@pytest.fixture
def printer(client):
    return ModalSpawnExecutor(functions.print_every, client=client)


async def _follow(executor, handle, n_lines: int = 200) -> list[str]:
    with anyio.fail_after(_BOUND_S):
        return [line async for line in executor.stream_logs(handle, n_lines=n_lines, follow=True)]


async def _follow_all(executor, handles) -> dict[int, list[str]]:
    seen: dict[int, list[str]] = {}

    async def follow(handle) -> None:
        seen[handle.rank] = await _follow(executor, handle)

    async with anyio.create_task_group() as group:
        for handle in handles:
            group.start_soon(follow, handle)
    return seen


def _lines(rank: int, numbers: range) -> list[str]:
    return [f"line {number} of rank {rank}" for number in numbers]


async def test_many_followers_share_one_reader_and_each_gets_its_own_lines_once(plane, printer, client) -> None:
    """Also from handles rebuilt elsewhere. What is asked beside the reader is for each follower, not for each look."""
    handles = await printer.launch_replicas(16, entrypoint_args={"n_lines": 8, "seconds": 0.4})
    elsewhere = ModalSpawnExecutor(functions.sleep, client=client)
    counts, since = plane.faults.latency(0, "AppCountLogs"), time.monotonic()
    seen = await _follow_all(elsewhere, [ReplicaHandle.from_json(handle.to_json()) for handle in handles])
    num_looks = (time.monotonic() - since) / feeds.TICK_S
    assert seen == {rank: _lines(rank, range(8)) for rank in range(16)}
    assert counts.struck <= num_looks + 1 + 16 * (1 + num_looks * feeds.TICK_S / logs._DOUBT_S)
    assert counts.struck >= 16 + 3


@pytest.mark.parametrize("function", ["none", "unknown", "another"])
async def test_followers_ask_for_themselves_where_the_functions_log_does_not_show_the_call(
    printer, monkeypatch, function
) -> None:
    monkeypatch.setattr(logs, "_DOUBT_S", 0.1)
    others = await ModalSpawnExecutor(functions.sleep, client=printer._modal._client).launch_replicas(
        1, entrypoint_args={"seconds": 0}
    )
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 600, "seconds": 0.1})
    given = {"none": None, "unknown": "fu-0000000000000000000000", "another": others[0].metadata["function_id"]}
    handle = dataclasses.replace(handle, metadata={**handle.metadata, "function_id": given[function]})
    follow = printer.stream_logs(handle, follow=True)
    with anyio.fail_after(_BOUND_S):
        assert [await anext(follow) for _ in range(12)] == _lines(0, range(12))
    await follow.aclose()
    await printer.cancel(handle)


async def test_a_slow_reader_loses_nothing_that_came_meanwhile(printer, monkeypatch) -> None:
    monkeypatch.setattr(feeds, "_MOST_ENTRIES", 2)
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 600, "seconds": 0.05})
    follow = printer.stream_logs(handle, follow=True)
    with anyio.fail_after(_BOUND_S):
        assert [await anext(follow) for _ in range(40)] == _lines(0, range(40))
    await follow.aclose()
    await printer.cancel(handle)


async def test_lines_of_an_input_that_is_run_again_follow_those_of_the_first(plane, printer) -> None:
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 4, "seconds": 0.2})
    follow = printer.stream_logs(handle, follow=True)
    with anyio.fail_after(_BOUND_S):
        seen = [await anext(follow)]
        await plane.preempt(str(handle.call_id))
        seen += [line async for line in follow if line.startswith("line ")]
    assert seen[-4:] == _lines(0, range(4))
    assert seen[:-4] == _lines(0, range(len(seen) - 4))
    assert len(seen) > 4


async def test_the_reader_ends_with_its_last_follower_and_starts_with_the_next(printer) -> None:
    handles = await printer.launch_replicas(2, entrypoint_args={"n_lines": 600, "seconds": 0.1})
    before = asyncio.all_tasks()
    for _ in range(2):
        follows = [printer.stream_logs(handle, n_lines=1000, follow=True) for handle in handles]
        for rank in range(2):
            assert await anext(follows[rank]) == f"line 0 of rank {rank}"
        await follows[0].aclose()
        assert [await anext(follows[1]) for _ in range(9)] == _lines(1, range(1, 10)), "the other goes on"
        await follows[1].aclose()
        with anyio.fail_after(_BOUND_S):
            while asyncio.all_tasks() > before:  # noqa: ASYNC110 - tasks ring no bell for others
                await anyio.sleep(0.01)
    for handle in handles:
        await printer.cancel(handle)


async def test_event_loops_of_several_threads_follow_at_once(printer, monkeypatch) -> None:
    monkeypatch.setattr(logs, "_DOUBT_S", _BOUND_S)
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 600, "seconds": 0.1})
    found = []

    async def follow() -> None:
        lines = printer.stream_logs(handle, follow=True)
        with anyio.fail_after(_BOUND_S / 2):
            found.append([await anext(lines) for _ in range(20)])
        await lines.aclose()

    def in_a_thread() -> None:  # in debug mode it is an error to wake a task of another event loop in passing
        anyio.run(follow, backend_options={"debug": True})

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(anyio.to_thread.run_sync, in_a_thread)
    assert found == [_lines(0, range(20))] * 2
    await printer.cancel(handle)


@pytest.mark.parametrize("rpc", ["AppFetchLogs", "AppCountLogs"])
async def test_a_control_plane_that_is_away_for_a_while_costs_no_line_and_repeats_none(plane, printer, rpc) -> None:
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 8, "seconds": 0.1})
    follow = printer.stream_logs(handle, follow=True)
    seen = [await anext(follow)]
    fault = plane.faults.unavailable(rpc, times=5)
    with anyio.fail_after(_BOUND_S):
        seen += [line async for line in follow]
    assert seen == _lines(0, range(8))
    assert fault.struck == 5


async def test_following_can_begin_at_the_end_of_what_there_is(printer) -> None:
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 6, "seconds": 0.25})
    assert await anext(printer.stream_logs(handle, follow=True)) == "line 0 of rank 0"
    seen = await _follow(printer, handle, n_lines=0)
    assert "line 0 of rank 0" not in seen
    assert seen == _lines(0, range(6))[-len(seen) :]
    assert len(seen) >= 3


async def test_the_log_of_a_replica_that_has_ended_can_be_followed_to_its_end(printer) -> None:
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 3, "seconds": 0})
    await printer.collect([handle], timeout=_BOUND_S)
    assert await _follow(printer, handle, n_lines=2) == _lines(0, range(1, 3))


async def test_a_log_that_cannot_be_had_is_an_error_within_bounds(plane, printer, monkeypatch) -> None:
    monkeypatch.setattr(entries, "ANSWER_S", 0.3)
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 1, "seconds": 0})
    plane.faults.hang("AppFetchLogs")
    with anyio.fail_after(_BOUND_S), pytest.raises(ExecutorError, match=r"did not answer within 0.3 s"):
        _ = [line async for line in printer.stream_logs(handle)]
    await printer.collect([handle], timeout=_BOUND_S)


def test_event_loops_in_which_logs_were_followed_are_forgotten(monkeypatch) -> None:
    async def read(*_args):
        return []

    monkeypatch.setattr(feeds, "_read", read)
    shared = feeds.Feeds(Calls(object()), None)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def follow_twice() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        for _ in range(2):
            with shared.subscribed("fu-1", "fc-1", Bell()), shared.subscribed("fu-1", "fc-2", Bell()):
                await anyio.wait_all_tasks_blocked()

    for _ in range(2):
        asyncio.run(follow_twice())
    gc.collect()
    assert [loop() for loop in loops] == [None, None]
