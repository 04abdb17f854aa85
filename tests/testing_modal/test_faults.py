"""Every fault, as the unmodified client experiences it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anyio
import modal
import pytest

if TYPE_CHECKING:
    from aiodiloco.testing.modal import LoopbackModal


async def test_latency_delays_every_rpc(lookup: Any, loopback_modal: LoopbackModal) -> None:
    function = lookup("add")
    await function.remote.aio(1)
    loopback_modal.faults.latency(0.2)
    started = time.monotonic()
    call = await function.spawn.aio(1)
    spawned = time.monotonic()
    await call.get.aio()
    assert spawned - started >= 0.2
    assert time.monotonic() - spawned >= 0.2


async def test_a_spawn_abandoned_in_flight_is_accepted_all_the_same(
    lookup: Any, loopback_modal: LoopbackModal, until: Any
) -> None:
    function = lookup("add")
    await function.hydrate.aio()
    loopback_modal.faults.latency(0.4, "FunctionMap")
    before = len(loopback_modal.calls())
    with anyio.move_on_after(0.1):
        await function.spawn.aio(1)
        pytest.fail("the spawn was not abandoned")
    assert len(loopback_modal.calls()) == before
    await until(lambda: len(loopback_modal.calls()) == before + 1)


async def test_unavailable_a_few_times_is_not_noticed(lookup: Any, loopback_modal: LoopbackModal) -> None:
    fault = loopback_modal.faults.unavailable("FunctionMap", times=2)
    assert await lookup("add").remote.aio(1, 2) == 3
    assert fault.struck == 2


async def test_unavailable_for_good_is_a_service_error(lookup: Any, loopback_modal: LoopbackModal) -> None:
    fault = loopback_modal.faults.unavailable("FunctionMap")
    with pytest.raises(modal.exception.ServiceError, match="injected: unavailable"):
        await lookup("add").spawn.aio(1)
    assert fault.struck == 4


async def test_a_lost_response_does_not_spawn_twice(lookup: Any, loopback_modal: LoopbackModal) -> None:
    function = lookup("add")
    await function.remote.aio(1)
    before = len(loopback_modal.calls())
    fault = loopback_modal.faults.lost_response("FunctionMap")
    call = await function.spawn.aio(1, 2)
    assert await call.get.aio() == 3
    assert fault.struck == 1
    assert [view.id for view in loopback_modal.calls()[before:]] == [call.object_id]


async def test_a_lost_response_for_good_leaves_a_call_that_nobody_knows(
    lookup: Any, loopback_modal: LoopbackModal
) -> None:
    function = lookup("add")
    await function.hydrate.aio()
    before = len(loopback_modal.calls())
    loopback_modal.faults.lost_response("FunctionMap", times=4)
    with pytest.raises(modal.exception.ServiceError, match="injected: the response was lost"):
        await function.spawn.aio(1)
    assert len(loopback_modal.calls()) == before + 1


async def test_a_lost_result_is_got_by_asking_again(lookup: Any, loopback_modal: LoopbackModal) -> None:
    call = await lookup("add").spawn.aio(1, 2)
    loopback_modal.faults.lost_response("FunctionGetOutputs", times=2)
    assert await call.get.aio() == 3


async def test_a_hung_rpc_is_not_carried_out(lookup: Any, loopback_modal: LoopbackModal) -> None:
    function = lookup("add")
    await function.hydrate.aio()
    before = len(loopback_modal.calls())
    fault = loopback_modal.faults.hang("FunctionMap")
    with anyio.move_on_after(0.3) as scope:
        await function.spawn.aio(1)
    assert scope.cancelled_caught
    assert fault.struck == 1
    assert len(loopback_modal.calls()) == before


async def test_throttling_raises(lookup: Any, loopback_modal: LoopbackModal) -> None:
    loopback_modal.faults.throttle("FunctionMap", times=1)
    with pytest.raises(modal.exception.ResourceExhaustedError):
        await lookup("add").spawn.aio(1)
    assert await lookup("add").remote.aio(1, 2) == 3


async def test_throttling_with_a_retry_policy_is_waited_out(lookup: Any, loopback_modal: LoopbackModal) -> None:
    function = lookup("add")
    await function.hydrate.aio()
    fault = loopback_modal.faults.throttle("FunctionMap", times=6, retry_after_s=0.05)
    started = time.monotonic()
    assert await function.remote.aio(1, 2) == 3
    assert fault.struck == 6
    assert time.monotonic() - started >= 0.3


async def test_containers_are_struck_only_on_request(lookup: Any, loopback_modal: LoopbackModal) -> None:
    function = lookup("add")
    await function.remote.aio(1)
    of_clients = loopback_modal.faults.unavailable("FunctionPutOutputs", times=1)
    of_containers = loopback_modal.faults.lost_response("FunctionPutOutputs", sender="container")
    assert await function.remote.aio(1, 2) == 3
    assert (of_clients.struck, of_containers.struck) == (0, 1)


async def test_a_control_plane_that_is_down_refuses_and_comes_back(
    lookup: Any, loopback_modal: LoopbackModal, tmp_path: Any, until: Any
) -> None:
    function = lookup("says_and_waits")
    call = await function.spawn.aio(str(tmp_path / "go"))
    await until(lambda: loopback_modal.call(call.object_id).state == "running")
    async with loopback_modal.down():
        (tmp_path / "go").touch()
        with pytest.raises(modal.exception.ConnectionError):
            await function.spawn.aio(str(tmp_path / "go"))
    with anyio.fail_after(10):
        await call.get.aio()


async def test_a_hundred_pending_polls_block_every_other_rpc_of_their_client(
    lookup: Any, loopback_modal: LoopbackModal, client: modal.Client, tmp_path: Any
) -> None:
    call = await lookup("sleep").spawn.aio(str(tmp_path / "log"))
    async with anyio.create_task_group() as task_group:
        for _ in range(120):
            task_group.start_soon(call.get.aio)
        await anyio.sleep(0.5)
        with anyio.move_on_after(0.5) as blocked:
            await call.cancel.aio()
        second_client = await loopback_modal.client()
        with anyio.fail_after(1):
            await modal.FunctionCall.from_id(call.object_id, client=second_client).cancel.aio()
        task_group.cancel_scope.cancel()
    assert blocked.cancelled_caught


def test_a_fault_for_an_rpc_that_does_not_exist_is_refused(loopback_modal: LoopbackModal) -> None:
    with pytest.raises(ValueError, match="'FunctionSpawn'"):
        loopback_modal.faults.hang("FunctionSpawn")
    with pytest.raises(ValueError, match="times=0"):
        loopback_modal.faults.hang("FunctionMap", times=0)
