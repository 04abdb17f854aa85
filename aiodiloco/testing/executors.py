"""The executor contract as a suite of tests; inherit it for each backend, override nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from aiodiloco.errors import EntrypointError, HandleError, LaunchError
from aiodiloco.executors.policy import WaitAll
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus
from aiodiloco.testing import entrypoints
from aiodiloco.testing.cancellation import cancel_at_every_step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aiodiloco.executors.serverless import Entrypoint, ServerlessExecutor

__all__ = ["ExecutorTests"]

_BOUND_S = 30.0  # for tests in which nothing should take long: a hang fails instead of hanging
_SLEEP = "aiodiloco.testing.entrypoints:sleep"


def _not_importable() -> list[object]:
    def nested(*, rank: int) -> int:
        return rank

    return [
        lambda rank: rank,
        nested,
        ReplicaStatus.running.upper,  # bound to an object
        functools.partial(entrypoints.add, to=1),
        "no_such_module_of_anyone:function",
        "aiodiloco.testing.entrypoints:no_such_function",
        "aiodiloco.testing.entrypoints:__doc__",
        "aiodiloco.testing.entrypoints",
        42,
    ]


class ExecutorTests:
    """What every executor guarantees.

    A subclass gives two fixtures: `executor`, a `ServerlessExecutor`; and `leftovers`, a function that returns the names of
    what still exists of the executor's ended replicas: processes, half-written files.
    """

    # -- launching -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("entrypoint", [entrypoints.add, entrypoints.add_async])
    @pytest.mark.parametrize("by_name", [False, True], ids=["function", "name"])
    async def test_every_replica_gets_its_rank_and_the_arguments(
        self, executor: ServerlessExecutor, entrypoint: Callable[..., object], by_name: bool
    ) -> None:
        given: Entrypoint = f"{entrypoint.__module__}:{entrypoint.__name__}" if by_name else entrypoint
        handles = await executor.launch_replicas(3, given, {"to": 10})
        rows = await executor.collect(handles, timeout=_BOUND_S)
        assert [row.result for row in rows] == [{"rank": rank, "sum": rank + 10, "note": None} for rank in range(3)]
        assert [(row.rank, row.status, row.error) for row in rows] == [(r, "succeeded", None) for r in range(3)]

    async def test_handles_come_in_rank_order_share_a_run_id_and_survive_json(
        self, executor: ServerlessExecutor
    ) -> None:
        handles = await executor.launch_replicas(4, entrypoints.add, run_id="a-run-of-4")
        assert [handle.rank for handle in handles] == [0, 1, 2, 3]
        assert {handle.run_id for handle in handles} == {"a-run-of-4"}
        assert {handle.backend_name for handle in handles} == {executor.backend_name}
        assert len({handle.call_id for handle in handles}) == 4
        assert all(handle.metadata["incarnation"] == 0 for handle in handles)
        assert [ReplicaHandle.from_json(handle.to_json()) for handle in handles] == handles
        rows = await executor.collect([ReplicaHandle.from_json(h.to_json()) for h in handles], timeout=_BOUND_S)
        assert [row.call_id for row in rows] == [handle.call_id for handle in handles]

    async def test_arguments_arrive_as_the_json_they_are(self, executor: ServerlessExecutor) -> None:
        note = {"text": "Δθ \x00 \ud83d\ude00", "list": (1, 2.5, None, True), "empty": {}}
        handles = await executor.launch_replicas(1, entrypoints.add, {"note": note})
        [row] = await executor.collect(handles, timeout=_BOUND_S)
        assert row.result == {"rank": 0, "sum": 0, "note": json.loads(json.dumps(note))}

    async def test_64_replicas_start_and_end(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]]
    ) -> None:
        handles = await executor.launch_replicas(64, entrypoints.add)
        rows = await executor.collect(handles, timeout=_BOUND_S)
        assert [row.result for row in rows] == [{"rank": rank, "sum": rank, "note": None} for rank in range(64)]
        assert leftovers() == []

    async def test_groups_side_by_side_do_not_meet(self, executor: ServerlessExecutor) -> None:
        rows: dict[int, list[ReplicaResult]] = {}

        async def run(to: int) -> None:
            handles = await executor.launch_replicas(2, entrypoints.add, {"to": to})
            rows[to] = await executor.collect(handles, timeout=_BOUND_S)

        async with anyio.create_task_group() as group:
            for to in (0, 100, 200):
                group.start_soon(run, to)
        sums = {
            to: [row.result["sum"] for row in of_run if isinstance(row.result, dict)] for to, of_run in rows.items()
        }
        assert sums == {to: [to, to + 1] for to in (0, 100, 200)}

    @pytest.mark.parametrize("n_replicas", [0, -1, 2.0, True, "2", None])
    async def test_a_number_of_replicas_that_is_none_is_refused(
        self, executor: ServerlessExecutor, n_replicas: object
    ) -> None:
        with pytest.raises(ValueError, match=r"n_replicas must be an int >= 1"):
            await executor.launch_replicas(n_replicas, entrypoints.add)  # type: ignore[arg-type] - what is tested

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "10"])
    async def test_a_timeout_that_is_none_is_refused_everywhere(
        self, executor: ServerlessExecutor, timeout: float
    ) -> None:
        with pytest.raises(ValueError, match="timeout must be"):
            await executor.launch_replicas(1, entrypoints.add, timeout=timeout)
        with pytest.raises(ValueError, match="timeout must be"):
            await executor.collect([], timeout=timeout)
        with pytest.raises(ValueError, match="timeout must be"):
            executor.as_completed([], timeout=timeout)

    @pytest.mark.parametrize("run_id", ["", "Upper", "a/b", "-a", "a" * 64, "a\n", 7])
    async def test_a_bad_run_id_is_refused(self, executor: ServerlessExecutor, run_id: str) -> None:
        with pytest.raises(ValueError, match="run_id .* is not valid"):
            await executor.launch_replicas(1, entrypoints.add, run_id=run_id)

    @pytest.mark.parametrize("entrypoint", _not_importable(), ids=repr)
    async def test_an_entrypoint_that_replicas_cannot_import_is_refused_with_the_remedy(
        self, executor: ServerlessExecutor, entrypoint: Entrypoint
    ) -> None:
        with pytest.raises(EntrypointError, match="module"):
            await executor.launch_replicas(1, entrypoint)

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            ({"note": object()}, r"entrypoint_args\['note'\] is a object"),
            ({"note": [1, {"a": b"x"}]}, r"entrypoint_args\['note'\]\[1\]\['a'\] is a bytes"),
            ({"note": float("nan")}, r"entrypoint_args\['note'\] is nan, and JSON has finite numbers only"),
            ({"note": {1: 2}}, r"entrypoint_args\['note'\] has the key 1"),
            ({"rank": 3}, "may not hold 'rank'"),
            ({"unknown": 3}, "unexpected keyword argument 'unknown'"),
            ({"note": "x" * (9 << 20)}, "bytes of JSON, more than"),
            ([1], "must be a mapping"),
        ],
    )
    async def test_arguments_that_cannot_be_passed_are_refused_by_name(
        self, executor: ServerlessExecutor, args: dict[str, object], says: str
    ) -> None:
        with pytest.raises(EntrypointError, match=says):
            await executor.launch_replicas(1, entrypoints.add, args)  # type: ignore[arg-type] - what is tested

    async def test_a_missing_argument_is_refused_by_name(self, executor: ServerlessExecutor) -> None:
        with pytest.raises(EntrypointError, match="missing a required argument: 'code'"):
            await executor.launch_replicas(1, entrypoints.exit_with)

    # -- results -------------------------------------------------------------------------------------------------

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

    # -- policies ------------------------------------------------------------------------------------------------

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

    # -- deadlines -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("entrypoint", [entrypoints.sleep, entrypoints.sleep_async])
    async def test_the_deadline_cancels_what_still_runs_and_is_exact_to_half_a_second(
        self, executor: ServerlessExecutor, leftovers: Callable[[], list[str]], entrypoint: Entrypoint
    ) -> None:
        handles = await executor.launch_replicas(4, entrypoint)
        start = time.monotonic()
        rows = await executor.collect(handles, timeout=2)
        assert 2.0 <= time.monotonic() - start < 2.5
        assert {row.status for row in rows} == {"cancelled"}
        assert {row.error for row in rows} == {"cancelled: the timeout of 2 s passed"}
        assert leftovers() == []

    async def test_the_deadline_can_leave_the_replicas_alone(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.sleep_by_rank, {"seconds": [0, 1.0]})
        rows = await executor.collect(handles, timeout=0.5, on_timeout="leave")
        assert [row.status for row in rows] == ["succeeded", "running"]
        assert rows[1].error == "still running: the timeout of 0.5 s passed"
        rows = await executor.collect(handles, timeout=_BOUND_S)
        assert [row.result for row in rows] == [0, 1]

    async def test_a_replica_over_its_own_timeout_has_failed(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.sleep, timeout=1)
        rows = await executor.collect(handles, policy=WaitAll())
        assert {row.status for row in rows} == {"failed"}
        assert all(row.error and "timeout of 1 s" in row.error for row in rows)

    async def test_an_unknown_on_timeout_is_refused(self, executor: ServerlessExecutor) -> None:
        with pytest.raises(ValueError, match='on_timeout must be "cancel" or "leave"'):
            await executor.collect([], on_timeout="kill")  # type: ignore[arg-type] - what is tested

    # -- polling and cancelling ----------------------------------------------------------------------------------

    async def test_poll_follows_a_replica_through_its_life(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(
            2, entrypoints.fail_or_sleep, {"failing": 1, "after": 0.5, "seconds": 1}
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
            return await executor.collect(handles, timeout=0.2)

        async def check(_: object) -> None:
            assert leftovers() == []
            handles[:] = await executor.launch_replicas(2, _SLEEP)

        await check(None)
        assert await cancel_at_every_step(collect, check, how=how) >= 4
        for handle in handles:
            await executor.cancel(handle)

    # -- as_completed --------------------------------------------------------------------------------------------

    async def test_as_completed_yields_in_the_order_of_the_ends(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(3, entrypoints.sleep_by_rank, {"seconds": [1.0, 0, 0.5]})
        assert [row.result async for row in executor.as_completed(handles, timeout=_BOUND_S)] == [1, 2, 0]

    async def test_as_completed_can_be_left_and_gone_on_with_in_another_task(
        self, executor: ServerlessExecutor
    ) -> None:
        handles = await executor.launch_replicas(3, entrypoints.sleep_by_rank, {"seconds": [0.6, 0, 0.3]})
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
        rows = [row async for row in executor.as_completed(handles, timeout=1)]
        assert 1.0 <= time.monotonic() - start < 1.5
        assert sorted((row.rank, row.status.value) for row in rows) == [
            (0, "cancelled"),
            (1, "succeeded"),
            (2, "cancelled"),
        ]
        assert leftovers() == []

    async def test_as_completed_loses_no_row_when_its_wait_is_cancelled(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, _SLEEP)
        completed = executor.as_completed(handles, timeout=_BOUND_S)
        with anyio.move_on_after(0.2) as scope:
            await anext(completed)
        assert scope.cancelled_caught
        assert [row.status async for row in completed] == ["cancelled", "cancelled"]

    # -- logs ----------------------------------------------------------------------------------------------------

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
        args = {"n_lines": 4, "seconds": 0.4}
        [handle] = await executor.launch_replicas(1, entrypoints.print_then_sleep, args)
        seen = []
        with anyio.fail_after(_BOUND_S):
            async for line in executor.stream_logs(handle, follow=True):
                seen.append((line, await executor.poll(handle)))
        assert [line for line, _ in seen] == [f"line {number} of rank 0" for number in range(4)]
        assert seen[0][1] == "running"
        assert (await executor.poll(handle)).is_final

    async def test_a_follower_can_stop_at_any_line(self, executor: ServerlessExecutor) -> None:
        args = {"n_lines": 100, "seconds": 0.1}
        [handle] = await executor.launch_replicas(1, entrypoints.print_then_sleep, args)
        with anyio.fail_after(_BOUND_S):
            async with contextlib.aclosing(_as_generator(executor.stream_logs(handle, follow=True))) as lines:
                async for _ in lines:
                    break
        await executor.cancel(handle)

    @pytest.mark.parametrize("n_lines", [-1, 1.5, True, None])
    async def test_a_number_of_lines_that_is_none_is_refused(self, executor: ServerlessExecutor, n_lines: int) -> None:
        [handle] = await executor.launch_replicas(1, entrypoints.add)
        with pytest.raises(ValueError, match="n_lines must be an int >= 0"):
            executor.stream_logs(handle, n_lines=n_lines)

    # -- handles -------------------------------------------------------------------------------------------------

    async def test_handles_of_another_backend_are_refused(self, executor: ServerlessExecutor) -> None:
        handle = ReplicaHandle(0, "elsewhere", "run-1", {"call_id": "x"})
        with pytest.raises(HandleError, match="'elsewhere' backend"):
            await executor.poll(handle)
        with pytest.raises(HandleError, match="'elsewhere' backend"):
            await executor.cancel(handle)
        with pytest.raises(HandleError, match="'elsewhere' backend"):
            await executor.collect([handle])
        with pytest.raises(HandleError, match="'elsewhere' backend"):
            executor.as_completed([handle])
        with pytest.raises(HandleError, match="'elsewhere' backend"):
            executor.stream_logs(handle)

    async def test_what_is_no_handle_is_refused(self, executor: ServerlessExecutor) -> None:
        with pytest.raises(HandleError, match="not a replica handle"):
            await executor.collect(["handle"])  # type: ignore[list-item] - what is tested

    async def test_a_handle_given_twice_is_refused(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.add)
        with pytest.raises(ValueError, match="rank 1 .* given twice"):
            await executor.collect([*handles, handles[1]])
        await executor.collect(handles, timeout=_BOUND_S)

    async def test_a_run_id_in_use_is_refused(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(1, entrypoints.add, run_id="only-once")
        with pytest.raises(LaunchError, match="rank 0 could not be started: .*'only-once' is already used"):
            await executor.launch_replicas(2, entrypoints.add, run_id="only-once")
        assert [row.status for row in await executor.collect(handles, timeout=_BOUND_S)] == ["succeeded"]


async def _as_generator(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield line
