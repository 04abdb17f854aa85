"""Following the log of a replica: every line once, in order, whatever happens on the way."""

from __future__ import annotations

import anyio
import pytest

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.modal import ModalSpawnExecutor, logs

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


def _lines(rank: int, numbers: range) -> list[str]:
    return [f"line {number} of rank {rank}" for number in numbers]


async def test_followers_of_many_replicas_each_get_their_own_lines(printer) -> None:
    handles = await printer.launch_replicas(4, entrypoint_args={"n_lines": 5, "seconds": 0.1})
    seen: dict[int, list[str]] = {}

    async def follow(handle) -> None:
        seen[handle.rank] = await _follow(printer, handle)

    async with anyio.create_task_group() as group:
        for handle in handles:
            group.start_soon(follow, handle)
    assert seen == {rank: _lines(rank, range(5)) for rank in range(4)}


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
    monkeypatch.setattr(logs, "_ANSWER_S", 0.3)
    [handle] = await printer.launch_replicas(1, entrypoint_args={"n_lines": 1, "seconds": 0})
    plane.faults.hang("AppFetchLogs")
    with anyio.fail_after(_BOUND_S), pytest.raises(ExecutorError, match=r"did not answer within 0.3 s"):
        _ = [line async for line in printer.stream_logs(handle)]
    await printer.collect([handle], timeout=_BOUND_S)
