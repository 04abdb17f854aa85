"""What polling, cancelling and reading logs guarantee."""

# ruff: noqa: D102 - the name of each test says what must hold

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from aiodiloco.executors.policy import WaitAll
from aiodiloco.testing import entrypoints
from aiodiloco.testing.cancellation import cancel_at_every_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiodiloco.executors.serverless import ServerlessExecutor
    from aiodiloco.records import ReplicaHandle, ReplicaResult

__all__ = ["WatchTests"]

_BOUND_S = 30.0  # for tests in which nothing should take long: a hang fails instead of hanging
_SLEEP = "aiodiloco.testing.entrypoints:sleep"


class WatchTests:
    """The part of `ExecutorTests` about single replicas, and about cancelling the caller."""

    async def test_poll_follows_a_replica_through_its_life(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(
            2, entrypoints.fail_or_sleep, {"failing": 1, "after": 0.2, "seconds": 0.4}
        )
        assert await executor.poll(handles[0]) in ("pending", "running")
        await executor.collect(handles, timeout=_BOUND_S, policy=WaitAll())
        assert [await executor.poll(handle) for handle in handles] == ["succeeded", "failed"]

    async def test_cancel_returns_once_the_replica_has_ended_and_again_without_harm(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]]
    ) -> None:
        [handle] = await executor.launch_replicas(1, _SLEEP)
        await executor.cancel(handle)
        assert leftovers() == []
        assert await executor.poll(handle) == "cancelled"
        await executor.cancel(handle)
        [row] = await executor.collect([handle], timeout=_BOUND_S)
        assert row.status == "cancelled"

    async def test_cancelling_an_ended_replica_changes_nothing(self, executor: ServerlessExecutor) -> None:
        [handle] = await executor.launch_replicas(1, entrypoints.add)
        before = await executor.collect([handle], timeout=_BOUND_S)
        await executor.cancel(handle)
        assert await executor.collect([handle], timeout=_BOUND_S) == before

    @pytest.mark.parametrize("how", ["task", "scope"])
    async def test_cancelling_launch_at_any_point_leaves_no_replica(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]], how: Literal["task", "scope"]
    ) -> None:
        async def check(handles: Sequence[ReplicaHandle] | None) -> None:
            for handle in handles or ():
                await executor.cancel(handle)
            assert leftovers() == []

        steps = await cancel_at_every_step(lambda: executor.launch_replicas(2, _SLEEP), check, how=how)
        assert steps >= 4

    @pytest.mark.parametrize("how", ["task", "scope"])
    async def test_cancelling_collect_at_any_point_cancels_the_replicas(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]], how: Literal["task", "scope"]
    ) -> None:
        handles: list[ReplicaHandle] = []

        async def collect() -> list[ReplicaResult]:
            return await executor.collect(handles, timeout=0.05)

        async def check(_: object) -> None:
            assert leftovers() == []
            handles[:] = await executor.launch_replicas(2, _SLEEP)

        await check(None)
        assert await cancel_at_every_step(collect, check, how=how) >= 4
        for handle in handles:
            await executor.cancel(handle)

    async def test_logs_hold_the_last_lines_of_stdout_and_stderr(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.print_lines, {"n_lines": 300, "end": ""})
        await executor.collect(handles, timeout=_BOUND_S)
        lines = [f"line {number} of rank 1" for number in range(300)] + ["last words of rank 1"]
        for n_lines in (0, 1, 2, 200, 301, 1000):
            seen = [line async for line in executor.stream_logs(handles[1], n_lines=n_lines)]
            assert seen == (lines[-n_lines:] if n_lines else [])
        assert [line async for line in executor.stream_logs(handles[1])] == lines[-200:]

    async def test_following_logs_yields_lines_as_they_come_and_ends_with_the_replica(
        self, executor: ServerlessExecutor
    ) -> None:
        args = {"n_lines": 4, "seconds": 0.25}
        [handle] = await executor.launch_replicas(1, entrypoints.print_then_sleep, args)
        with anyio.fail_after(_BOUND_S):
            lines = executor.stream_logs(handle, follow=True)
            seen = [(line, await executor.poll(handle)) async for line in lines]
        assert [line for line, _ in seen] == [f"line {number} of rank 0" for number in range(4)]
        assert seen[0][1] == "running"
        assert (await executor.poll(handle)).is_final

    async def test_a_follower_can_stop_at_any_line(self, executor: ServerlessExecutor) -> None:
        args = {"n_lines": 100, "seconds": 0.1}
        [handle] = await executor.launch_replicas(1, entrypoints.print_then_sleep, args)
        with anyio.fail_after(_BOUND_S):
            async for line in executor.stream_logs(handle, follow=True):
                assert line == "line 0 of rank 0"
                break
        await executor.cancel(handle)

    @pytest.mark.parametrize("n_lines", [-1, 1.5, True, None])
    async def test_a_number_of_lines_that_is_none_is_refused(self, executor: ServerlessExecutor, n_lines: int) -> None:
        [handle] = await executor.launch_replicas(1, entrypoints.add)
        with pytest.raises(ValueError, match="n_lines must be an int >= 0"):
            executor.stream_logs(handle, n_lines=n_lines)
