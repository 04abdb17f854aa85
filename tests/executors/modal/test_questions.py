"""Modal's client is asked the same way inside and outside, and outside where its inside is not as expected."""

from __future__ import annotations

import anyio
import modal
import pytest

from aiodiloco.executors import WaitAll
from aiodiloco.executors.modal import ModalSpawnExecutor, inside, questions
from aiodiloco.executors.modal.inside import Inside
from aiodiloco.executors.modal.questions import Questions
from aiodiloco.executors.modal.requests import NoAnswerError

from . import functions

_BOUND_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def on_modal(session_client):
    with functions.app.run(client=session_client):
        yield


@pytest.fixture(params=["inside", "outside"])
def way(request, monkeypatch) -> str:
    if request.param == "outside":
        monkeypatch.setattr(Inside, "if_known", classmethod(lambda cls: None))
    return request.param


def test_the_installed_client_is_known_inside() -> None:
    assert Inside.if_known() is not None


@pytest.mark.parametrize("missing", ["_new_hydrated", "_translate_in"])
def test_a_client_that_is_another_inside_is_asked_from_outside(monkeypatch, missing) -> None:
    of = inside.unwrapped(modal.FunctionCall) if missing == "_new_hydrated" else type(inside._synchronizer())
    monkeypatch.delattr(next(each for each in of.__mro__ if missing in vars(each)), missing)
    assert Inside.if_known() is None
    assert Questions()._inside is None


async def test_both_ways_say_the_same_of_each_end(way, client) -> None:
    asked = Questions()
    assert (asked._inside is None) == (way == "outside")
    spawned = await functions.rank_and.spawn.aio(rank=7)
    assert (await asked.result(spawned.object_id, client, wait_s=_BOUND_S, within_s=_BOUND_S))["rank"] == 7
    raised = await functions.raise_timeout.spawn.aio(rank=0, message="mine")
    with pytest.raises(TimeoutError, match="mine"):
        await asked.result(raised.object_id, client, wait_s=_BOUND_S, within_s=_BOUND_S)
    lost = await functions.raise_unpicklable.spawn.aio(rank=0)
    with pytest.raises(modal.exception.ExecutionError, match="raise RankError"):
        await asked.result(lost.object_id, client, wait_s=_BOUND_S, within_s=_BOUND_S)
    with pytest.raises(modal.exception.NotFoundError):
        await asked.end("fc-0000000000000000000000", client, kill=False, within_s=_BOUND_S)


async def test_both_ways_end_a_call_and_have_no_answer_when_it_hangs(way, client, plane) -> None:
    asked = Questions()
    call_id = (await functions.sleep.spawn.aio(rank=0)).object_id
    with pytest.raises(TimeoutError) as caught:
        await asked.result(call_id, client, wait_s=0.05, within_s=_BOUND_S)
    assert type(caught.value) is TimeoutError
    plane.faults.hang("FunctionCallCancel", times=1)
    with pytest.raises(NoAnswerError):
        await asked.end(call_id, client, kill=True, within_s=0.1)
    assert plane.call(call_id).is_alive
    await asked.end(call_id, client, kill=True, within_s=_BOUND_S)
    with pytest.raises(modal.exception.RemoteError):
        await asked.result(call_id, client, wait_s=_BOUND_S, within_s=_BOUND_S)


async def test_an_executor_launches_cancels_and_collects_from_outside(monkeypatch, plane) -> None:
    monkeypatch.setattr(Inside, "if_known", classmethod(lambda cls: None))
    client = await plane.client()
    async with ModalSpawnExecutor(functions.sleep_by_rank, client=client, grace=0.1) as executor:
        handles = await executor.launch_replicas(3, entrypoint_args={"seconds": [0, 600, 600]})
        with anyio.fail_after(_BOUND_S):
            await executor.cancel(handles[1])
            rows = await executor.collect(handles, timeout=1, policy=WaitAll())
    assert [row.status for row in rows] == ["succeeded", "cancelled", "cancelled"]
    assert not any(plane.call(handle.call_id).is_alive for handle in handles)


async def test_the_client_of_the_environment_is_asked_where_none_is_given(monkeypatch, client) -> None:
    """Inside, without the public object that would look it up."""
    call_id = (await functions.rank_and.spawn.aio(rank=3)).object_id
    own = inside.unwrapped(client)

    async def from_env(cls):
        return own

    monkeypatch.setattr(inside.unwrapped(modal.Client), "from_env", classmethod(from_env))
    result = await questions.Questions().result(call_id, None, wait_s=_BOUND_S, within_s=_BOUND_S)
    assert result["rank"] == 3
