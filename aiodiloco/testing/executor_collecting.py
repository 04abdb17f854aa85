"""What results, policies and deadlines guarantee."""

# ruff: noqa: D102 - the name of each test says what must hold

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.executors.policy import WaitAll
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.executors.serverless import Entrypoint, ServerlessExecutor

__all__ = ["CollectTests"]

_BOUND_S = 30.0  # for tests in which nothing should take long: a hang fails instead of hanging
_SLEEP = "aiodiloco.testing.entrypoints:sleep"


class CollectTests:
    """The part of `ExecutorTests` about `collect` and `as_completed`."""

    async def test_collecting_nothing_returns_nothing(self, executor: ServerlessExecutor) -> None:
        assert await executor.collect([]) == []
        assert [row async for row in executor.as_completed([])] == []

    async def test_rows_come_in_the_order_of_the_handles_and_again_the_same(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(4, entrypoints.sleep_by_rank, {"seconds": [0.3, 0, 0.2, 0]})
        rows = await executor.collect(handles[::-1], timeout=_BOUND_S)
        assert [row.result for row in rows] == [3, 2, 1, 0]
        assert await executor.collect(handles[::-1], timeout=_BOUND_S) == rows
        assert await executor.collect(handles[2:3], timeout=_BOUND_S) == rows[1:2]

    @pytest.mark.parametrize("entrypoint", [entrypoints.fail, entrypoints.fail_async])
    async def test_an_exception_becomes_a_row_with_its_traceback(
        self, executor: ServerlessExecutor, entrypoint: Entrypoint
    ) -> None:
        [row] = await executor.collect(await executor.launch_replicas(1, entrypoint), timeout=_BOUND_S)
        assert (row.status, row.error, row.result) == ("failed", "ValueError: rank 0 will not", None)
        assert row.traceback is not None
        assert 'raise ValueError(f"rank {rank} will not")' in row.traceback

    @pytest.mark.parametrize(
        ("code", "status", "error"),
        [
            (0, "succeeded", None),
            (None, "succeeded", None),
            (3, "failed", "SystemExit: 3"),
            ("why", "failed", "SystemExit: why"),
        ],
    )
    async def test_sys_exit_is_what_it_is_to_a_process(
        self, executor: ServerlessExecutor, code: int | str | None, status: str, error: str | None
    ) -> None:
        handles = await executor.launch_replicas(1, entrypoints.exit_with, {"code": code})
        [row] = await executor.collect(handles, timeout=_BOUND_S)
        assert (row.status, row.error) == (status, error)

    @pytest.mark.parametrize(
        ("kind", "says"),
        [
            ("object", "the return value is a object"),
            ("nan", "the return value is nan"),
            ("bytes in a list", r"the return value\[1\] is a bytes"),
            ("int key", "the return value has the key 1"),
        ],
    )
    async def test_a_result_that_is_not_json_is_a_failure_that_says_so(
        self, executor: ServerlessExecutor, kind: str, says: str
    ) -> None:
        handles = await executor.launch_replicas(1, entrypoints.return_object, {"kind": kind})
        [row] = await executor.collect(handles, timeout=_BOUND_S)
        assert row.status == "failed"
        assert row.error is not None
        assert says.replace("\\", "") in row.error
        assert "return numbers, strings, lists and dicts" in row.error

    @pytest.mark.parametrize("after", [0.0, 0.3])
    async def test_the_first_failure_cancels_the_siblings_within_half_a_second(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]], after: float
    ) -> None:
        args = {"failing": 2, "after": after}
        rows = await executor.collect(
            await executor.launch_replicas(4, entrypoints.fail_or_sleep, args), timeout=_BOUND_S
        )
        now = time.time()
        assert [row.status for row in rows] == ["cancelled", "cancelled", "failed", "cancelled"]
        assert rows[2].error is not None
        assert now - float(rows[2].error.removeprefix("RuntimeError: ")) < 0.5
        assert all(row.error == f"cancelled: rank 2 failed: {rows[2].error}" for row in rows if row.rank != 2)
        assert leftovers() == []

    async def test_wait_all_waits_for_all(self, executor: ServerlessExecutor) -> None:
        args = {"failing": 0, "seconds": 0.5}
        handles = await executor.launch_replicas(3, entrypoints.fail_or_sleep, args)
        rows = await executor.collect(handles, timeout=_BOUND_S, policy=WaitAll())
        assert [(row.status, row.result) for row in rows] == [("failed", None), ("succeeded", 1), ("succeeded", 2)]

    @pytest.mark.parametrize(("entrypoint", "timeout"), [(entrypoints.sleep, 2.0), (entrypoints.sleep_async, 0.5)])
    async def test_the_deadline_cancels_what_still_runs_and_is_exact_to_half_a_second(
        self,
        executor: ServerlessExecutor,
        leftovers: Callable[[], list[str]],
        entrypoint: Callable[..., object],
        timeout: float,
    ) -> None:
        handles = await executor.launch_replicas(4, entrypoint)
        start = time.monotonic()
        rows = await executor.collect(handles, timeout=timeout)
        assert timeout <= time.monotonic() - start < timeout + 0.5
        assert {row.status for row in rows} == {"cancelled"}
        assert {row.error for row in rows} == {f"cancelled: the timeout of {timeout:g} s passed"}
        assert leftovers() == []

    async def test_the_deadline_can_leave_the_replicas_alone(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.sleep_by_rank, {"seconds": [0, 0.7]})
        rows = await executor.collect(handles, timeout=0.3, on_timeout="leave")
        assert [row.status for row in rows] == ["succeeded", "running"]
        assert rows[1].error == "still running: the timeout of 0.3 s passed"
        rows = await executor.collect(handles, timeout=_BOUND_S)
        assert [row.result for row in rows] == [0, 1]

    async def test_a_replica_over_its_own_timeout_has_failed(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.sleep, timeout=0.5)
        rows = await executor.collect(handles, policy=WaitAll())
        assert {row.status for row in rows} == {"failed"}
        assert all(row.error and "timeout of 0.5 s" in row.error for row in rows)

    async def test_an_unknown_on_timeout_is_refused(self, executor: ServerlessExecutor) -> None:
        with pytest.raises(ValueError, match='on_timeout must be "cancel" or "leave"'):
            await executor.collect([], on_timeout="kill")  # type: ignore[arg-type]  # what is tested

    async def test_as_completed_yields_in_the_order_of_the_ends(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(3, entrypoints.sleep_by_rank, {"seconds": [2, 0, 1]})
        assert [row.result async for row in executor.as_completed(handles, timeout=_BOUND_S)] == [1, 2, 0]

    async def test_as_completed_can_be_left_and_gone_on_with_in_another_task(
        self, executor: ServerlessExecutor
    ) -> None:
        handles = await executor.launch_replicas(3, entrypoints.sleep_by_rank, {"seconds": [2, 0, 1]})
        completed = executor.as_completed(handles, timeout=_BOUND_S)
        seen: list[object] = []
        async for row in completed:
            seen.append(row.result)
            break

        async def rest() -> None:
            seen.extend([row.result async for row in completed])

        async with anyio.create_task_group() as group:
            group.start_soon(rest)
        assert seen == [1, 2, 0]

    async def test_leaving_as_completed_leaves_the_replicas_running(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.sleep_by_rank, {"seconds": [0, 0.5]})
        async for _ in executor.as_completed(handles):
            break
        assert [row.status for row in await executor.collect(handles, timeout=_BOUND_S)] == ["succeeded"] * 2

    async def test_as_completed_cancels_the_rest_at_its_deadline_and_yields_their_rows(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]]
    ) -> None:
        handles = await executor.launch_replicas(3, entrypoints.sleep_by_rank, {"seconds": [60, 0, 60]})
        start = time.monotonic()
        rows = [row async for row in executor.as_completed(handles, timeout=0.5)]
        assert 0.5 <= time.monotonic() - start < 1.0
        assert sorted((row.rank, row.status.value) for row in rows) == [
            (0, "cancelled"),
            (1, "succeeded"),
            (2, "cancelled"),
        ]
        assert leftovers() == []

    async def test_the_deadline_of_as_completed_counts_from_the_call(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(1, entrypoints.sleep)
        start = time.monotonic()
        completed = executor.as_completed(handles, timeout=0.6)
        await anyio.sleep(0.4)
        assert [row.status async for row in completed] == ["cancelled"]
        assert 0.6 <= time.monotonic() - start < 1.0

    async def test_as_completed_loses_no_row_when_its_wait_is_cancelled(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, _SLEEP)
        completed = executor.as_completed(handles, timeout=_BOUND_S)
        with anyio.move_on_after(0.2) as scope:
            await anext(completed)
        assert scope.cancelled_caught
        assert [row.status async for row in completed] == ["cancelled", "cancelled"]
