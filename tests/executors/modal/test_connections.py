"""Requests go where there is room, the urgent ones first, however many executors share a client."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest

from aiodiloco.executors import WaitAll
from aiodiloco.executors.modal import ModalSpawnExecutor, backend, connections, copies, watcher
from aiodiloco.executors.modal.connections import Connections, Kind, connections_of
from aiodiloco.testing.modal import LoopbackModal

from . import functions

_BOUND_S = 30.0
_MANY = 150


@pytest.fixture(scope="module")
def crowded_plane():
    """A control plane on which all but one replica wait for a container."""
    with LoopbackModal(max_containers=1) as plane:
        client = anyio.run(plane.client)
        with functions.app.run(client=client):
            yield plane


@pytest.fixture
async def client(crowded_plane):
    client = await crowded_plane.client()
    yield client
    crowded_plane.reset()
    await client.close.aio()


async def _until(holds) -> None:
    with anyio.fail_after(_BOUND_S):
        while not holds():  # noqa: ASYNC110 - what happens on the control plane rings no bell here
            await anyio.sleep(0.01)


@contextlib.asynccontextmanager
async def _watched(executor, handles):
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: executor.collect(handles, policy=WaitAll()))
        yield
        group.cancel_scope.cancel()


async def _take_and_note(shared: Connections, kind: Kind, log: list[Kind]) -> None:
    turn = await shared.turn(kind, log)
    log.append(kind)
    turn.give_back()


async def test_polls_leave_room_and_the_urgent_go_first() -> None:
    shared = Connections(None)
    polls = [await shared.turn(Kind.poll, shared) for _ in range(56)]
    rest = [await shared.turn(Kind.order, shared) for _ in range(12)]
    log: list[Kind] = []
    for line in shared._copies:
        line.copy = object()
    more = [await shared.turn(Kind.order, shared, again=True) for _ in range(2 * 96)]
    async with anyio.create_task_group() as group:
        for kind in (Kind.poll, Kind.poll, Kind.confirmation, Kind.order, Kind.order):
            group.start_soon(_take_and_note, shared, kind, log)
        await anyio.wait_all_tasks_blocked()
        assert log == []
        assert not shared.has_room_for(Kind.order)
        rest[0].give_back()
        await anyio.wait_all_tasks_blocked()
        assert log == [Kind.order, Kind.order, Kind.confirmation], "polls have their own limit"
        for turn in polls + rest[1:] + more:
            turn.give_back()
    assert log[3:] == [Kind.poll, Kind.poll]
    assert shared.has_room_for(Kind.poll, 56)
    assert not shared.has_room_for(Kind.poll, 57)
    assert not any(any(line.under_way) for line in shared._lines)


async def test_who_gives_up_its_wait_takes_no_turn_along() -> None:
    shared = Connections(None)
    turns = [await shared.turn(Kind.poll, shared) for _ in range(56)]
    with anyio.move_on_after(0.01) as scope:
        await shared.turn(Kind.poll, shared)
    assert scope.cancelled_caught
    assert shared.has_room_for(Kind.poll, 1)
    for turn in turns:
        turn.give_back()
    assert not any(any(line.under_way) for line in shared._lines)


async def test_all_who_use_a_client_share_its_connections(client, crowded_plane) -> None:
    one, other = (ModalSpawnExecutor(functions.sleep, client=client) for _ in range(2))
    assert one._modal._connections is other._modal._connections
    other_client = await crowded_plane.client()
    assert ModalSpawnExecutor(functions.sleep, client=other_client)._modal._connections is not connections_of(client)
    assert connections_of(None) is ModalSpawnExecutor(functions.sleep)._modal._connections


async def test_several_executors_watching_large_groups_leave_room_for_a_cancellation(
    client, crowded_plane, monkeypatch
) -> None:
    """Together they would fill a connection, which carries 100 requests."""
    monkeypatch.setattr(watcher, "_SHORT_POLL_S", 5.0)
    executors = [ModalSpawnExecutor(functions.sleep, client=client, grace=0.1) for _ in range(3)]
    groups = [await executor.launch_replicas(60) for executor in executors]
    async with contextlib.AsyncExitStack() as stack:
        polls = crowded_plane.faults.latency(0, "FunctionGetOutputs")
        for executor, handles in zip(executors, groups, strict=True):
            await stack.enter_async_context(_watched(executor, handles))
        await _until(lambda: polls.struck >= 56)
        await executors[2].cancel(groups[2][30])
        assert not crowded_plane.call(groups[2][30].call_id).is_alive
        assert polls.struck <= 56 + 2, "and those by which its end was confirmed"


async def test_a_cancellation_gets_through_when_the_users_own_requests_fill_the_connection(
    client, crowded_plane, monkeypatch
) -> None:
    monkeypatch.setattr(backend, "_ANSWER_S", 0.3)
    monkeypatch.setattr(watcher, "_ANSWER_S", 0.3)
    monkeypatch.setattr(watcher, "_LONG_POLL_S", 0.3)
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=0.1)
    handles = await executor.launch_replicas(102)
    polls = crowded_plane.faults.latency(0, "FunctionGetOutputs")
    calls = [functions.modal.FunctionCall.from_id(handle.call_id, client=client) for handle in handles[2:]]
    own = [asyncio.create_task(call.get.aio()) for call in calls]
    await _until(lambda: polls.struck == len(own))
    await executor.cancel(handles[1])
    assert not crowded_plane.call(handles[1].call_id).is_alive
    assert not any(task.done() for task in own)
    for task in own:
        task.cancel()
    await asyncio.wait(own)
    await executor.close()


async def test_ending_a_large_group_takes_one_order_and_one_confirmation_each(
    client, crowded_plane, monkeypatch
) -> None:
    monkeypatch.setattr(watcher, "_LOOK_S", 5.0)  # on a slow machine, a shorter one may come to nothing
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=_BOUND_S)
    handles = await executor.launch_replicas(_MANY)
    polls = crowded_plane.faults.latency(0.1, "FunctionGetOutputs")
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: executor.collect(handles, policy=WaitAll()))
        await _until(lambda: polls.struck >= 56)
        orders = crowded_plane.faults.latency(0.1, "FunctionCallCancel")
        confirmations = crowded_plane.faults.latency(0, "FunctionGetOutputs")
        for handle in handles:
            group.start_soon(executor.cancel, handle)
    assert orders.struck == _MANY
    assert confirmations.struck <= _MANY + 56, "one each, and the polls that were under way"
    copies = [line.copy for line in connections_of(client)._copies]
    assert copies[0] is not None
    await executor.close()
    assert all(copy is None or copy.is_closed() for copy in copies)


async def test_a_replica_whose_end_could_not_be_asked_for_yet_is_not_told_again(client, crowded_plane) -> None:
    """It has ended within its grace, and only the confirmation had to queue."""
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=0.05)
    handles = await executor.launch_replicas(2)
    shared = connections_of(client)
    turns = [await shared.turn(Kind.order, shared) for _ in range(68)]
    turns += [await shared.turn(Kind.confirmation, shared) for _ in range(2 * 64)]
    orders = crowded_plane.faults.latency(0, "FunctionCallCancel")
    async with anyio.create_task_group() as group:
        group.start_soon(executor.cancel, handles[1])
        await _until(lambda: orders.struck)
        await anyio.sleep(0.3)
        for turn in turns:
            turn.give_back()
    assert orders.struck == 1
    await shared.leave(shared)
    await executor.close()


async def test_ending_a_small_group_opens_no_connection(client, crowded_plane) -> None:
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=0.1)
    handles = await executor.launch_replicas(12)
    rows = await executor.collect(handles, timeout=0.2)
    assert {row.status for row in rows[1:]} == {"cancelled"}
    assert not any(line.copy for line in connections_of(client)._copies)


async def test_the_second_connection_stays_for_others_and_is_opened_again_after_its_end(client, crowded_plane) -> None:
    one, other = (ModalSpawnExecutor(functions.sleep, client=client, grace=0.1) for _ in range(2))
    shared = connections_of(client)
    for executor in (one, other):
        turn = await shared.turn(Kind.order, executor._modal._watcher, again=True)
        turn.give_back()
    assert turn.client is not client
    await turn.client.hello.aio()
    await one.close()
    await turn.client.hello.aio()
    await other.close()
    await other.close()
    assert turn.client.is_closed()
    again = await shared.turn(Kind.order, one._modal._watcher, again=True)
    again.give_back()
    await again.client.hello.aio()
    await one.close()


async def test_orders_share_the_clients_connection_where_it_cannot_be_copied(
    client, crowded_plane, monkeypatch
) -> None:
    monkeypatch.setattr(copies, "unwrapped", lambda client: object())
    executor = ModalSpawnExecutor(functions.sleep, client=client, grace=0.1)
    handles = await executor.launch_replicas(_MANY)
    with anyio.fail_after(_BOUND_S):
        async with anyio.create_task_group() as group:
            for handle in handles:
                group.start_soon(executor.cancel, handle)
    assert not any(line.copy for line in connections_of(client)._copies)
    await executor.close()
    assert not client.is_closed()


def test_what_is_sent_over_one_connection_at_once_fits() -> None:
    """100 is HTTP/2's usual limit; a launch has 32 spawns under way."""
    assert connections._MOST_OVER_OWN[Kind.order] + 32 <= 100
    assert connections._MOST_OVER_COPY[Kind.order] <= 100


@pytest.mark.parametrize("failure", ["refused", "hangs"])
async def test_without_a_second_connection_the_first_carries_everything(failure, monkeypatch) -> None:
    attempts = []

    async def open_copy(_client):
        attempts.append(failure)
        if failure == "hangs":
            await anyio.sleep_forever()
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(connections, "open_copy", open_copy)
    monkeypatch.setattr(connections, "_OPEN_S", 0.05)
    monkeypatch.setattr(connections, "_OPEN_AGAIN_S", 1000.0)
    own = object()
    shared = Connections(own)
    for _ in range(2):
        with anyio.fail_after(_BOUND_S):
            turn = await shared.turn(Kind.confirmation, shared, again=True)
        assert turn.client is own
        turn.give_back()
    assert attempts == [failure], "nobody waits for it twice"
    shared._copies[0].open_again_at = 0.0
    await shared.turn(Kind.confirmation, shared, again=True)
    assert attempts == [failure] * 2
