"""What is written once about a run, and the journal of what it started."""

from __future__ import annotations

import pytest

from aiodiloco import FailFast, Quorum, Respawn, StoreError, WaitAll
from aiodiloco.errors import HandleError
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus
from aiodiloco.run.journal import Slot, give_up, read_journal, record_call, record_start
from aiodiloco.run.record import (
    RunAttempt,
    RunOutcome,
    RunRecord,
    RunResult,
    read_cancel,
    read_record,
    read_result,
    write_cancel,
    write_record,
    write_result,
)
from aiodiloco.store import MemoryStore

from .test_takeover import make_record

_POLICIES = [FailFast(), WaitAll(), Quorum(2, rest="wait"), Respawn(1, 2, 0.5, then=Quorum(1))]


def handle_of(slot: Slot) -> ReplicaHandle:
    return ReplicaHandle(slot.rank, "scripted", "a-run", {"call_id": str(slot), "incarnation": slot.incarnation})


def make_result() -> RunResult:
    row = ReplicaResult(0, ReplicaStatus.failed, exit_code=-9, error="killed", preempted=True)
    return RunResult("a-run", RunOutcome.failed, "all ended", (row,), (RunAttempt(3, row, 1.5),), 2.5, 12.0)


@pytest.mark.parametrize("policy", _POLICIES, ids=repr)
async def test_a_record_is_read_as_it_was_written_and_the_first_counts(policy: object) -> None:
    store = MemoryStore()
    record = make_record(policy=policy, entrypoint_args={"lr": 0.1, "layers": [1, {"a": None}]})
    assert await read_record(store) is None
    assert await write_record(store, record) == record
    assert await write_record(store, make_record(n_replicas=5)) == record == await read_record(store)


async def test_results_and_orders_are_read_as_they_were_written_and_the_first_counts() -> None:
    store = MemoryStore()
    assert await read_result(store) is None
    assert await write_result(store, make_result()) == make_result() == await read_result(store)
    assert (await write_result(store, RunResult("a-run", RunOutcome.succeeded, "", (), (), 0, 0))) == make_result()
    assert await read_cancel(store) is None
    await write_cancel(store, "enough")
    await write_cancel(store, "more than enough")
    assert await read_cancel(store) == "enough"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": 1}', b'{"policy": {"kind": "Mine"}}', b"\xff"])
async def test_something_else_under_a_key_is_an_error_that_names_it(data: bytes) -> None:
    store = MemoryStore("other-things")
    for key, read in (("run.json", read_record), ("result.json", read_result)):
        await store.put(key, data)
        with pytest.raises(StoreError, match=f"memory://other-things/{key} holds .* which aiodiloco.launch did not"):
            await read(store)


def test_a_request_tells_the_replica_its_incarnation_if_it_wants_to_know() -> None:
    assert make_record().request(1, 2).entrypoint_args == {}
    request = make_record(entrypoint_args={"incarnation": 0, "lr": 1}).request(1, 2)
    assert (request.rank, request.incarnation, request.entrypoint_args) == (1, 2, {"incarnation": 2, "lr": 1})


@pytest.mark.parametrize(("gpu", "number"), [(None, 1), ("H100", 1), ("H100:8", 8), ("A100-80GB:2", 2), ("any:", 1)])
def test_gpus_are_counted(gpu: str | None, number: int) -> None:
    assert make_record(gpu=gpu).gpus_per_replica == number


def test_a_record_of_another_version_may_say_more() -> None:
    fields = {**make_record().to_dict(), "colour": "blue"}
    assert RunRecord.from_dict(fields) == make_record()


async def test_the_journal_knows_what_runs_what_may_run_and_what_was_given_up() -> None:
    store = MemoryStore()
    assert await record_call(store, handle_of(Slot(0, 0)), Slot(0, 0))
    assert await record_start(store, Slot(0, 1), "me")
    assert await record_start(store, Slot(12, 3), "me")
    assert await record_call(store, handle_of(Slot(12, 3)), Slot(12, 3))
    assert await give_up(store, Slot(2, 0)) is None
    await store.put("calls/readme", b"")
    journal = await read_journal(store, 3)
    assert journal.handles == {slot: handle_of(slot) for slot in (Slot(0, 0), Slot(12, 3))}
    assert journal.unknown == {Slot(0, 1), Slot(1, 0)}
    assert journal.given_up == {Slot(2, 0)}


async def test_a_process_is_either_journaled_or_given_up_and_whoever_comes_second_knows() -> None:
    store = MemoryStore()
    first, second = Slot(0, 0), Slot(1, 0)
    assert await record_call(store, handle_of(first), first)
    assert await give_up(store, first) == handle_of(first)
    assert await give_up(store, second) is None
    assert await give_up(store, second) is None
    assert not await record_call(store, handle_of(second), second)


async def test_of_two_who_want_to_start_a_process_one_may() -> None:
    store = MemoryStore()
    assert await record_start(store, Slot(0, 1), "me")
    assert not await record_start(store, Slot(0, 1), "you")
    assert await record_start(store, Slot(0, 1), "me"), "its own reply may have been lost"


async def test_a_damaged_journal_is_an_error() -> None:
    store = MemoryStore()
    await store.put("calls/0-0.json", b"{")
    with pytest.raises(HandleError, match="not a replica handle"):
        await read_journal(store, 1)
