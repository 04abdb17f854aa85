"""What launching replicas guarantees, and what it refuses."""

# ruff: noqa: D102 - the name of each test says what must hold

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.errors import EntrypointError, HandleError, LaunchError
from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.executors.serverless import Entrypoint, ServerlessExecutor

__all__ = ["LaunchTests"]

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


class LaunchTests:
    """The part of `ExecutorTests` about starting replicas and about their handles."""

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
        note: JSON = {"text": "Δθ \x00 \ud83d\ude00", "list": (1, 2.5, None, True), "empty": {}}
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
            await executor.launch_replicas(n_replicas, entrypoints.add)  # type: ignore[arg-type]  # what is tested

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
        with pytest.raises(ValueError, match=r"run_id .* is not valid"):
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
            await executor.launch_replicas(1, entrypoints.add, args)  # type: ignore[arg-type]  # what is tested

    async def test_a_missing_argument_is_refused_by_name(self, executor: ServerlessExecutor) -> None:
        with pytest.raises(EntrypointError, match="missing a required argument: 'code'"):
            await executor.launch_replicas(1, entrypoints.exit_with)

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
            await executor.collect(["handle"])  # type: ignore[list-item]  # what is tested

    async def test_a_handle_given_twice_is_refused(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(2, entrypoints.add)
        with pytest.raises(ValueError, match=r"rank 1 .* given twice"):
            await executor.collect([*handles, handles[1]])
        await executor.collect(handles, timeout=_BOUND_S)

    async def test_a_run_id_in_use_is_refused(self, executor: ServerlessExecutor) -> None:
        handles = await executor.launch_replicas(1, entrypoints.add, run_id="only-once")
        with pytest.raises(LaunchError, match=r"rank 0 could not be started: .*'only-once' is already used"):
            await executor.launch_replicas(2, entrypoints.add, run_id="only-once")
        assert [row.status for row in await executor.collect(handles, timeout=_BOUND_S)] == ["succeeded"]
