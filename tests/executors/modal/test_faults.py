"""What holds when the control plane is slow, away, refusing or forgetful, and when replicas misbehave."""

from __future__ import annotations

import time

import anyio
import pytest

from aiodiloco.errors import LaunchError
from aiodiloco.executors import WaitAll
from aiodiloco.executors.modal import ModalExecutor, ModalSpawnExecutor, backend, watcher
from aiodiloco.testing import entrypoints
from aiodiloco.testing.modal import LoopbackModal

from . import functions

_BOUND_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def on_modal(session_client):
    with functions.app.run(client=session_client):
        yield


@pytest.fixture
def sleeper(client):
    return ModalSpawnExecutor(functions.sleep, client=client, grace=0.1)


async def _until(holds) -> None:
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - what happens on the control plane rings no bell here
            await anyio.sleep(0.01)


@pytest.mark.parametrize("fault", ["hang", "unavailable", "throttle", "throttle politely"])
async def test_the_deadline_holds_whatever_the_control_plane_does_and_no_row_lies(
    plane, sleeper, fault, monkeypatch
) -> None:
    """The fault lasts until `collect` has returned; how exact its deadline is, `test_deadlines` measures."""
    monkeypatch.setattr(backend, "_ANSWER_S", 0.5)
    monkeypatch.setattr(watcher, "_ANSWER_S", 0.5)
    handles = await sleeper.launch_replicas(3)
    {
        "hang": lambda: plane.faults.hang("Function*"),
        "unavailable": lambda: plane.faults.unavailable("Function*"),
        "throttle": lambda: plane.faults.throttle("Function*"),
        "throttle politely": lambda: plane.faults.throttle("Function*", retry_after_s=1),
    }[fault]()
    start = time.monotonic()
    with anyio.fail_after(_BOUND_S):
        rows = await sleeper.collect(handles, timeout=0.5)
    assert time.monotonic() - start >= 0.5
    assert [row.status for row in rows] == ["running"] * 3
    assert all("asked for but not confirmed" in row.error for row in rows)
    plane.faults.clear()
    rows = await sleeper.collect(handles, timeout=_BOUND_S)
    assert [row.status for row in rows] == ["cancelled"] * 3, "the orders that hung were given again"


async def test_the_deadline_holds_when_the_control_plane_is_dead_and_replicas_outlive_it() -> None:
    async with LoopbackModal() as plane, ModalExecutor(client=await plane.client()) as executor:
        handles = await executor.launch_replicas(2, entrypoints.sleep)
        async with plane.down():
            start = time.monotonic()
            with anyio.fail_after(_BOUND_S):
                rows = await executor.collect(handles, timeout=0.5)
            assert time.monotonic() - start >= 0.5
            assert [row.status for row in rows] == ["running"] * 2
        rows = await executor.collect(handles, timeout=_BOUND_S)
        assert [row.status for row in rows] == ["cancelled"] * 2


@pytest.mark.parametrize(("fault", "times"), [("unavailable", 12), ("lost_response", 12), ("throttle", 4)])
async def test_a_control_plane_that_is_away_for_a_while_is_not_the_replicas_end(plane, sleeper, fault, times) -> None:
    """For longer than the client itself bears it: four refusals of a request, one throttled one."""
    handles = await sleeper.launch_replicas(2, entrypoint_args={"seconds": 0.1})
    struck = getattr(plane.faults, fault)("FunctionGetOutputs", times=times)
    rows = await sleeper.collect(handles, timeout=_BOUND_S)
    assert [row.result for row in rows] == [0, 1]
    assert struck.struck == times


async def test_poll_waits_for_a_control_plane_that_is_away_for_a_while(plane, sleeper) -> None:
    [handle] = await sleeper.launch_replicas(1)
    plane.faults.unavailable("FunctionGetOutputs", times=6)
    assert await sleeper.poll(handle) == "running"
    await sleeper.cancel(handle)


async def test_a_refused_spawn_is_tried_again_and_starts_one_replica(plane, sleeper) -> None:
    before = len(plane.calls())
    plane.faults.throttle("FunctionMap", times=3)
    plane.faults.lost_response("FunctionMap", times=1)
    handles = await sleeper.launch_replicas(2, entrypoint_args={"seconds": 0})
    assert len(plane.calls()) == before + 2
    assert [row.result for row in await sleeper.collect(handles, timeout=_BOUND_S)] == [0, 1]


async def test_a_spawn_that_is_always_refused_fails_the_launch_and_names_the_rank(
    plane, sleeper, monkeypatch, leftovers
) -> None:
    monkeypatch.setattr(backend, "_LATEST_RETRY_S", 0.5)
    plane.faults.throttle("FunctionMap")
    with pytest.raises(LaunchError, match=r"rank 0 could not be started: Modal takes no more calls now"):
        await sleeper.launch_replicas(2)
    assert leftovers() == []


@pytest.mark.parametrize("message", [None, "mine"])
async def test_a_timeout_error_of_the_replica_is_its_end_and_never_taken_for_still_running(client, message) -> None:
    executor = ModalSpawnExecutor(functions.raise_timeout, client=client)
    [handle] = await executor.launch_replicas(1, entrypoint_args={"message": message})
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.error) == ("failed", f"TimeoutError: {message or ''}")
    assert await executor.poll(handle) == "failed"


async def test_a_replica_that_raises_what_the_client_raises_has_failed(client) -> None:
    executor = ModalSpawnExecutor(functions.raise_of_the_control_plane, client=client)
    [row] = await executor.collect(await executor.launch_replicas(1), timeout=_BOUND_S)
    assert (row.status, row.error) == ("failed", "ConnectionError: rank 0 lost its own connection")
    assert row.traceback is not None
    assert "raise modal.exception.ConnectionError(" in row.traceback
    assert "/modal/_runtime/" not in row.traceback


async def test_an_exception_that_cannot_be_unpickled_is_a_failure_with_its_story(client) -> None:
    executor = ModalSpawnExecutor(functions.raise_unpicklable, client=client)
    [row] = await executor.collect(await executor.launch_replicas(1), timeout=_BOUND_S)
    assert row.status == "failed"
    assert "ExecutionError: Could not deserialize remote exception" in row.error
    assert "raise RankError" in row.traceback


async def test_a_lost_container_is_a_failure_and_not_a_cancellation(plane, client, sleeper) -> None:
    [handle] = await sleeper.launch_replicas(1)
    await _until(lambda: plane.call(handle.call_id).state == "running")
    await plane.crash(handle.call_id)
    [row] = await sleeper.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.call_id) == ("failed", handle.call_id)
    assert row.error.startswith("its container was lost: ")


async def test_an_expired_result_is_told(plane, sleeper, monkeypatch) -> None:
    monkeypatch.setattr(watcher, "_LONG_POLL_S", 0.2)
    [handle] = await sleeper.launch_replicas(1, entrypoint_args={"seconds": 0})
    await sleeper.collect([handle], timeout=_BOUND_S)
    await plane.expire(handle.call_id)
    [row] = await sleeper.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.call_id) == ("failed", handle.call_id)
    assert "Modal keeps results for seven days" in row.error


async def test_a_preempted_replica_runs_again_and_its_handle_follows_it(plane, client) -> None:
    executor = ModalSpawnExecutor(functions.print_every, client=client)
    [handle] = await executor.launch_replicas(1, entrypoint_args={"n_lines": 1, "seconds": 1.5})
    assert await anext(executor.stream_logs(handle, follow=True)) == "line 0 of rank 0"
    await plane.preempt(handle.call_id)
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert row.status == "succeeded"
    assert plane.call(handle.call_id).num_attempts == 2


async def test_a_call_cancelled_from_elsewhere_has_failed_and_says_so(client, sleeper) -> None:
    [handle] = await sleeper.launch_replicas(1)
    await ModalSpawnExecutor(functions.sleep, client=client).cancel(handle)
    [row] = await sleeper.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.error) == (
        "failed",
        "ended without a word: cancelled from elsewhere (another process, `modal app stop`, the dashboard)",
    )


async def test_who_swallows_the_polite_cancellation_is_killed_after_the_grace(plane, client) -> None:
    executor = ModalSpawnExecutor(functions.never_end, client=client, grace=0.5)
    [handle] = await executor.launch_replicas(1)
    await _until(lambda: plane.call(handle.call_id).state == "running")
    start = time.monotonic()
    with anyio.fail_after(_BOUND_S):
        await executor.cancel(handle)
    assert time.monotonic() - start >= 0.5
    assert not plane.call(handle.call_id).is_alive
    assert await executor.poll(handle) == "cancelled"


async def test_who_heeds_the_polite_cancellation_is_not_killed(plane, client) -> None:
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=20.0)
    [handle] = await executor.launch_replicas(1)
    await _until(lambda: plane.call(handle.call_id).state == "running")
    container = plane.call(handle.call_id).containers[0]
    with anyio.fail_after(10):
        await executor.cancel(handle)
    assert container in plane.containers()


async def test_a_cancellation_is_not_starved_by_the_polls_of_a_large_group(monkeypatch) -> None:
    """130 replicas are watched over a connection that carries 100 requests at once, by polls that outlast the test."""
    monkeypatch.setattr(watcher, "_SHORT_POLL_S", 2 * _BOUND_S)
    async with LoopbackModal(max_containers=1) as plane:
        async with ModalExecutor(client=await plane.client()) as executor:
            handles = await executor.launch_replicas(130, entrypoints.sleep)
            polls = plane.faults.latency(0, "FunctionGetOutputs")
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: executor.collect(handles, policy=WaitAll()))
                await _until(lambda: polls.struck >= 56)
                with anyio.fail_after(_BOUND_S):
                    await executor.cancel(handles[100])
                group.cancel_scope.cancel()
        assert not any(call.is_alive for call in plane.calls())
