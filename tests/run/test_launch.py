"""Launching a run and holding it: what the block promises, whatever happens inside and outside."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aiodiloco import FailFast, LaunchError, Quorum, Respawn, RunConflictError, RunError, WaitAll, launch
from aiodiloco.errors import EntrypointError
from aiodiloco.executors import Executor
from aiodiloco.lease import LeaseTerms
from aiodiloco.run.record import RunRecord, read_record, read_result
from aiodiloco.store import open_store
from aiodiloco.testing import entrypoints
from aiodiloco.testing.cancellation import cancel_at_every_step

from .scripted import WorldBackend

if TYPE_CHECKING:
    from typing import Literal

    from .scripted import World

_BOUND_S = 20.0


def started(executor: Executor, store: str, n_replicas: int = 3, **options: Any) -> Any:
    options = {"timeout": 60.0, "run_id": "a-run", **options}
    return launch(executor, entrypoints.sleep, n_replicas, store=store, **options)


async def result_of(store: str, run_id: str = "a-run") -> Any:
    async with open_store(f"{store}/runs/{run_id}") as opened:
        return await read_result(opened)


async def test_a_run_is_launched_waited_for_and_recorded(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store) as run:
        assert world.living == ["0-0", "1-0", "2-0"]
        assert [handle.rank for handle in run.handles] == [0, 1, 2]
        assert (await run.status()).result is None
        world.end_all()
        rows = await run.wait()
        assert await run.wait() == rows
    assert [row.status for row in rows] == ["succeeded"] * 3
    status = await run.status()
    assert status.result == await result_of(store)
    assert status.result is not None
    assert (status.result.outcome, status.result.reason) == ("succeeded", "every replica has ended")
    assert (status.driver, status.generation) == ("ended", 1)
    assert [attempt.incarnation for attempt in status.result.attempts] == [0, 0, 0]


async def test_leaving_the_block_waits_for_the_end(executor: Executor, store: str, world: World) -> None:
    async with anyio.create_task_group() as tasks:
        async with started(executor, store):
            tasks.start_soon(_end_soon, world)
        assert not world.living
    assert (await result_of(store)).outcome == "succeeded"


async def _end_soon(world: World) -> None:
    await anyio.sleep(0.05)
    world.end_all()


async def test_an_exception_inside_cancels_the_replicas_and_passes_as_it_is(
    executor: Executor, store: str, world: World
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with started(executor, store):
            _ = 1 / 0
    assert not world.living
    result = await result_of(store)
    assert result.outcome == "cancelled"
    assert result.reason == "its driver's block was left by ZeroDivisionError"
    assert [row.status for row in result.rows] == ["cancelled"] * 3
    assert result.rows[0].error == f"cancelled: {result.reason}"


async def test_waiting_can_be_given_up_without_ending_the_run(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store) as run:
        with anyio.move_on_after(0.05):
            await run.wait()
        assert world.living == ["0-0", "1-0", "2-0"]
        await run.cancel()
    result = await result_of(store)
    assert (result.outcome, result.reason) == ("cancelled", "cancel() was called")


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_no_replica_survives_a_launch_cancelled_at_any_await(how: Literal["task", "scope"], world: World) -> None:
    number = 0

    async def work() -> str:
        nonlocal number
        number += 1
        async with started(Executor(WorldBackend(world)), f"memory://cancelled-{how}-{number}", 2) as run:
            with anyio.move_on_after(0.01):
                await run.wait()
            world.end_all()
            await run.wait()
        return "done"

    async def check(_: str | None) -> None:
        assert not world.living

    with anyio.fail_after(60):
        steps = await cancel_at_every_step(work, check, how=how)
    assert steps > 30


async def test_a_replica_that_cannot_be_started_fails_the_launch_and_the_run(
    executor: Executor, backend: WorldBackend, store: str, world: World
) -> None:
    async def refuse(call_id: str) -> None:
        if call_id == "1-0":
            raise ConnectionError("no machine")

    backend.before_spawn = refuse
    with pytest.raises(LaunchError, match="rank 1 could not be started: no machine"):
        async with started(executor, store):
            pytest.fail("the block must not run")
    assert not world.living
    result = await result_of(store)
    assert result.outcome == "failed"
    assert "rank 1 could not be started: no machine" in result.reason
    assert [row.status for row in result.rows] == ["cancelled", "pending", "cancelled"]


async def test_the_same_run_id_attaches_while_the_run_goes_on_and_after_it(
    executor: Executor, store: str, world: World
) -> None:
    async with started(executor, store) as run:
        other = Executor(WorldBackend(world))
        async with started(other, store) as again:
            assert [handle.call_id for handle in again.handles] == ["0-0", "1-0", "2-0"]
            world.end_all()
            assert await again.wait() == await run.wait()
    async with started(executor, store) as ended:
        assert await ended.wait() == await run.wait()
    assert set(world.spawned.values()) == {1}


async def test_an_exception_in_a_block_that_only_watches_leaves_the_run_alone(
    executor: Executor, store: str, world: World
) -> None:
    async with started(executor, store):
        with pytest.raises(ZeroDivisionError):
            async with started(Executor(WorldBackend(world)), store):
                _ = 1 / 0
        assert world.living == ["0-0", "1-0", "2-0"]
        world.end_all()


def test_of_arguments_that_differ_only_the_names_are_shown() -> None:
    """Somebody may have put a password there."""
    args = {"lr": 1, "same": 2, "token": "hunter2"}
    terms = LeaseTerms.of(60.0)
    record = RunRecord("r", 2, "local", "m:f", args, None, 60.0, 60.0, FailFast(), terms, True, None, "launch")
    record.check_same(dataclasses.replace(record, launch_id="another"))
    other = dataclasses.replace(record, entrypoint_args={"lr": 3, "same": 2, "token": "swordfish"})
    with pytest.raises(RunConflictError, match=r"\(entrypoint_args: lr, token\)") as refused:
        record.check_same(other)
    assert "hunter2" not in str(refused.value)
    assert "swordfish" not in str(refused.value)


async def test_other_arguments_under_the_same_run_id_are_refused_by_name(
    executor: Executor, store: str, world: World
) -> None:
    async with started(executor, store):
        with pytest.raises(RunConflictError, match=r"\(n_replicas: 3 before, 2 now; timeout_s: 60.0 before, 7.0 now\)"):
            async with started(executor, store, 2, timeout=7):
                pytest.fail("the block must not run")
        world.end_all()
    assert not world.replicas["0-0"].cancels


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout": None}, ValueError, "timeout must be a number of seconds, not None"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0"),
        ({"lease": -1}, ValueError, "lease must be more than 0"),
        ({"max_gpu_seconds": 0}, ValueError, "max_gpu_seconds must be more than 0"),
        ({"run_id": "A run"}, ValueError, "run_id 'A run' is not valid"),
        ({"policy": Quorum(4)}, ValueError, "a quorum of 4 cannot be reached by 3 replicas"),
        ({"policy": Respawn(then=Quorum(4))}, ValueError, "a quorum of 4 cannot be reached"),
        ({"policy": "fail fast"}, TypeError, "policy must be FailFast, WaitAll, Quorum or Respawn"),
        ({"args": {"rendezvous_uri": "x"}}, EntrypointError, "args may not hold 'rendezvous_uri'"),
        ({"args": {"minutes": 1}}, EntrypointError, "unexpected keyword argument 'minutes'"),
    ],
    ids=str,
)
async def test_bad_arguments_are_refused_before_anything_starts(  # noqa: PLR0917 - fixtures
    executor: Executor, store: str, world: World, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        async with started(executor, store, **options):
            pytest.fail("the block must not run")
    assert not world.replicas


async def test_what_is_no_executor_is_refused(store: str) -> None:
    with pytest.raises(TypeError, match="executor must be a LocalProcessExecutor"):
        async with started("local", store):  # type: ignore[arg-type]
            pytest.fail("the block must not run")


def takes_all(*, rank: int, rendezvous_uri: str, world_size: int, incarnation: int) -> None:
    raise NotImplementedError


def takes_some(*, rank: int, world_size: int, extra: int = 0) -> None:
    raise NotImplementedError


def takes_any(*, rank: int, **rest: object) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("entrypoint", "names"),
    [
        (takes_all, {"rendezvous_uri", "world_size", "incarnation"}),
        (takes_some, {"world_size"}),
        (takes_any, {"rendezvous_uri", "world_size", "incarnation"}),
    ],
)
async def test_an_entrypoint_gets_what_it_has_parameters_for(  # noqa: PLR0917 - fixtures
    entrypoint: Any, names: set[str], executor: Executor, backend: WorldBackend, world: World, tmp_path: Any
) -> None:
    async with launch(executor, entrypoint, 2, store=tmp_path, timeout=60) as run:
        world.end_all()
    args = backend.requests[1].entrypoint_args
    assert args.keys() == names
    assert args["world_size"] == 2
    assert args.get("rendezvous_uri", run.uri) == run.uri == f"{tmp_path.as_uri()}/runs/{run.run_id}"


async def test_a_store_that_replicas_cannot_reach_is_refused(executor: Executor, store: str) -> None:
    with pytest.raises(ValueError, match="lives in this process only"):
        async with launch(executor, takes_all, 1, store=store, timeout=60):
            pytest.fail("the block must not run")


async def test_replicas_find_the_size_of_the_run_and_its_lease_in_its_record(
    executor: Executor, store: str, world: World
) -> None:
    async with started(executor, store, lease=6):
        async with open_store(f"{store}/runs/a-run") as opened:
            record = await read_record(opened)
        world.end_all()
    assert record is not None
    assert (record.n_replicas, record.terms.ttl_s, record.terms.beat_s, record.binds_replicas) == (3, 6, 1, True)


async def test_the_deadline_ends_the_run_and_says_so(executor: Executor, store: str, world: World) -> None:
    with anyio.fail_after(_BOUND_S):
        async with started(executor, store, timeout=0.2) as run:
            rows = await run.wait()
    assert [row.status for row in rows] == ["cancelled"] * 3
    assert rows[0].error == "cancelled: the run's timeout of 0.2 s passed"
    assert (await result_of(store)).outcome == "cancelled"


async def test_the_budget_ends_the_run_and_says_so(executor: Executor, store: str) -> None:
    with anyio.fail_after(_BOUND_S):
        async with started(executor, store, max_gpu_seconds=6.0, gpu="H100:8") as run:
            rows = await run.wait()
    assert rows[2].error == "cancelled: the run's budget of 6 GPU seconds is spent"
    result = await result_of(store)
    assert 6.0 <= result.spent_gpu_s == pytest.approx(sum(8 * one.seconds for one in result.attempts), abs=0.1)
    assert result.elapsed_s < 5.0  # of 60: three replicas with eight GPUs each spend six seconds in a quarter of one


async def test_replicas_that_are_deaf_to_their_cancellation_do_not_hold_the_run(
    executor: Executor, store: str, world: World
) -> None:
    world.cancels_take_effect = False
    with anyio.fail_after(_BOUND_S):
        async with started(executor, store, timeout=0.1) as run:
            rows = await run.wait()
    assert [row.status for row in rows] == ["running"] * 3
    assert "did not confirm its end" in str(rows[0].error)


async def test_a_policy_is_carried_out(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store, policy=FailFast()) as run:
        world.end("1-0", "failed")
        rows = await run.wait()
    assert [row.status for row in rows] == ["cancelled", "failed", "cancelled"]
    assert rows[0].error == "cancelled: rank 1 failed: failed by script"
    result = await result_of(store)
    assert (result.outcome, result.reason) == ("failed", "rank 1 failed: failed by script")


async def test_a_quorum_that_succeeded_is_success(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store, policy=Quorum(2)) as run:
        world.end("0-0")
        world.end("2-0")
        rows = await run.wait()
    assert [row.status for row in rows] == ["succeeded", "cancelled", "succeeded"]
    assert (await result_of(store)).outcome == "succeeded"


async def test_a_rank_that_failed_is_started_again(
    executor: Executor, backend: WorldBackend, world: World, tmp_path: Any
) -> None:
    policy = Respawn(max_restarts=1, max_preemptions=1, backoff=0.0)
    async with launch(executor, takes_all, 2, store=tmp_path, timeout=60, policy=policy, run_id="a-run") as run:
        world.end("1-0", "failed")
        await world.wait_for("1-1")
        world.end("1-1", "failed", preempted=True)
        await world.wait_for("1-2")
        assert [handle.call_id for handle in run.handles] in (["0-0", "1-1"], ["0-0", "1-2"])
        world.end("1-2")
        world.end("0-0")
        rows = await run.wait()
        events = [event async for event in run.events()]
    assert [row.status for row in rows] == ["succeeded", "succeeded"]
    result = await result_of(str(tmp_path))
    ends = [(one.row.rank, one.incarnation, one.row.status) for one in result.attempts]
    assert ends == [(0, 0, "succeeded"), (1, 0, "failed"), (1, 1, "failed"), (1, 2, "succeeded")]
    assert [request.entrypoint_args["incarnation"] for request in backend.requests] == [0, 0, 1, 2]
    told = [(e.kind, e.data["rank"], e.data["incarnation"]) for e in events if e.data.get("rank") == 1]
    assert told == [
        *(("spawned", 1, 0), ("ended", 1, 0)),
        *(("respawned", 1, 1), ("spawned", 1, 1), ("ended", 1, 1)),
        *(("respawned", 1, 2), ("spawned", 1, 2), ("ended", 1, 2)),
    ]
    ends = [(e.data["status"], e.data["preempted"], e.data["error"]) for e in events if e.kind == "ended"]
    assert ends.count(("succeeded", False, None)) == 2
    assert ("failed", False, "failed by script") in ends
    assert ("failed", True, "failed by script") in ends


async def test_what_failed_too_often_is_left_to_the_next_policy(executor: Executor, store: str, world: World) -> None:
    policy = Respawn(max_restarts=1, backoff=0.0, then=WaitAll())
    async with started(executor, store, policy=policy) as run:
        world.end("1-0", "failed")
        await world.wait_for("1-1")
        world.end("1-1", "failed")
        world.end("0-0")
        world.end("2-0")
        rows = await run.wait()
    assert [row.status for row in rows] == ["succeeded", "failed", "succeeded"]


async def test_a_respawn_that_cannot_be_started_counts_as_a_failure(
    executor: Executor, backend: WorldBackend, store: str, world: World
) -> None:
    async def refuse(call_id: str) -> None:
        if call_id != "0-0":
            raise ConnectionError("no machine")

    async with started(executor, store, 1, policy=Respawn(max_restarts=2, backoff=0.0)) as run:
        backend.before_spawn = refuse
        world.end("0-0", "failed")
        [row] = await run.wait()
    assert "rank 0 could not be started: no machine" in str(row.error)
    assert len((await result_of(store)).attempts) == 3


async def test_cancelling_while_a_rank_is_started_again_leaves_none(
    executor: Executor, backend: WorldBackend, store: str, world: World
) -> None:
    spawning = anyio.Event()

    async def dawdle(call_id: str) -> None:
        if call_id == "0-1":
            spawning.set()
            await anyio.sleep(0.2)

    backend.after_spawn = dawdle
    with anyio.fail_after(_BOUND_S):
        async with started(executor, store, policy=Respawn(backoff=0.0)) as run:
            world.end("0-0", "failed")
            await spawning.wait()
            rows = await run.cancel()
    assert not world.living
    assert [row.status for row in rows] == ["cancelled"] * 3
    assert rows[0].call_id == "0-1"


async def test_events_end_with_the_run(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store) as run:
        world.end_all()
        with anyio.fail_after(_BOUND_S):
            kinds = [event.kind async for event in run.events()]
    assert kinds[:3] == ["spawned"] * 3
    assert kinds[-1] == "run_ended"


async def test_a_run_bound_by_a_lease_cannot_be_detached(executor: Executor, store: str, world: World) -> None:
    async with started(executor, store) as run:
        with pytest.raises(RunError, match="launch it with lease=None to detach"):
            run.detach()
        world.end_all()


async def test_a_detached_run_goes_on_and_can_be_attached_to_at_once(
    executor: Executor, store: str, world: World
) -> None:
    async with started(executor, store, lease=None) as run:
        run.detach()
    assert world.living == ["0-0", "1-0", "2-0"]
    assert (await run.status()).driver == "released"
    with anyio.fail_after(_BOUND_S):  # its lease lasts for a minute, but it was let go of
        async with started(Executor(WorldBackend(world)), store, lease=None) as again:
            world.end_all()
            assert [row.status for row in await again.wait()] == ["succeeded"] * 3
