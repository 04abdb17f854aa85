"""One executor from several loops and threads, two side by side, and no blocking of the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import blockbuster
import pytest

from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BOUND_S = 20.0


@pytest.fixture
def no_blocking_calls() -> Iterator[None]:
    with blockbuster.blockbuster_ctx("aiodiloco"):
        yield


@pytest.mark.usefixtures("no_blocking_calls")
async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    async with LocalProcessExecutor(root=tmp_path) as executor:
        handles = await executor.launch_replicas(
            3, "aiodiloco.testing.entrypoints:sleep_by_rank", {"seconds": [0, 0.1, 60]}
        )
        assert await executor.poll(handles[2]) == "running"
        async for _ in executor.as_completed(handles[:2], timeout=_BOUND_S):
            pass
        await executor.cancel(handles[2])
        await executor.collect(handles, timeout=_BOUND_S)
        handles = await executor.launch_replicas(1, entrypoints.print_then_sleep, {"n_lines": 2, "seconds": 0.1})
        assert len([line async for line in executor.stream_logs(handles[0], follow=True)]) == 2


def test_four_threads_with_a_loop_each_share_one_executor(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(root=tmp_path)
    sums: dict[int, list[object]] = {}

    async def work(to: int) -> None:
        for _ in range(3):
            handles = await executor.launch_replicas(4, entrypoints.add, {"to": to})
            rows = await executor.collect(handles, timeout=_BOUND_S)
            sums[to] = [row.result["sum"] for row in rows if isinstance(row.result, dict)]

    threads = [threading.Thread(target=anyio.run, args=(work, to)) for to in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    anyio.run(executor.close)
    assert sums == {to: [to, to + 1, to + 2, to + 3] for to in (0, 10, 20, 30)}


async def test_closing_one_of_two_executors_leaves_the_other_alone(tmp_path: Path) -> None:
    async with LocalProcessExecutor(root=tmp_path) as first:
        async with LocalProcessExecutor(root=tmp_path) as second:
            mine, theirs = await asyncio.gather(
                first.launch_replicas(2, entrypoints.sleep, {"seconds": 0.5}),
                second.launch_replicas(2, entrypoints.sleep),
            )
            assert await second.poll(mine[0]) == "running"
        assert [await first.poll(handle) for handle in theirs] == ["cancelled", "cancelled"]
        rows = await first.collect(mine, timeout=_BOUND_S)
    assert [row.status for row in rows] == ["succeeded", "succeeded"]


async def test_the_executor_works_under_anyio_scopes_of_the_caller(tmp_path: Path) -> None:
    """A deadline of the caller's own cancels the replicas like any cancellation."""
    async with LocalProcessExecutor(root=tmp_path) as executor:
        handles = await executor.launch_replicas(2, entrypoints.sleep)
        with anyio.move_on_after(0.3) as scope:
            await executor.collect(handles)
        assert scope.cancelled_caught
        assert [await executor.poll(handle) for handle in handles] == ["cancelled", "cancelled"]
