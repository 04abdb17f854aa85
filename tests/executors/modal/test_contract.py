"""The executor contract holds for both executors, through Modal's client and Modal's container runtime."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aiodiloco.errors import LaunchError
from aiodiloco.executors import launch
from aiodiloco.executors.modal import app
from aiodiloco.testing import entrypoints
from aiodiloco.testing.executors import ExecutorTests

_BOUND_S = 30.0
_KEYS = {"rank", "status", "exit_code", "error", "result", "call_id"}


@pytest.fixture(params=["spawner", "modal_executor"])
def either(request):
    """Each of the two executors."""
    return request.getfixturevalue(request.param)


class TestModalSpawnExecutor(ExecutorTests):
    """The contract, for the user's own functions."""

    @pytest.fixture
    def executor(self, spawner):
        return spawner


class TestModalExecutor(ExecutorTests):
    """The contract, for any importable function."""

    @pytest.fixture
    def executor(self, modal_executor):
        return modal_executor


def test_the_default_image_has_what_replicas_import() -> None:
    """With torch, and with buckets; what talks to Modal is in every container anyway."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(app._NEEDS) == {*project["dependencies"], *extras["torch"], *extras["s3"]}


async def test_results_have_the_keys_and_statuses_that_callers_know(either) -> None:
    handles = await either.launch_replicas(3, entrypoints.fail_or_sleep, {"failing": 1, "after": 0.2})
    assert [await either.poll(handle) for handle in handles[::2]] == ["running"] * 2
    rows = [row.to_dict() for row in await either.collect(handles, timeout=_BOUND_S)]
    assert all(set(row) >= _KEYS for row in rows)
    assert [(row["rank"], row["status"], row["exit_code"]) for row in rows] == [
        (0, "cancelled", None),
        (1, "failed", 1),
        (2, "cancelled", None),
    ]
    assert [row["call_id"] for row in rows] == [handle.call_id for handle in handles]
    assert [await either.poll(handle) for handle in handles] == ["cancelled", "failed", "cancelled"]
    [row] = await either.collect(await either.launch_replicas(1, entrypoints.add), timeout=_BOUND_S)
    expected = {"status": "succeeded", "exit_code": 0, "error": None, "result": {"rank": 0, "sum": 0, "note": None}}
    assert {key: row.to_dict()[key] for key in expected} == expected


async def test_a_launch_that_fails_at_a_rank_names_it_and_cancels_the_others(
    either, plane, monkeypatch, leftovers
) -> None:
    monkeypatch.setattr(launch, "_SPAWNS_IN_FLIGHT", 1)  # so that the third request is that of rank 2
    await either.collect(await either.launch_replicas(1, entrypoints.add), timeout=_BOUND_S)  # deploys
    before = len(plane.calls())
    plane.faults.unavailable("FunctionMap", after=2)
    with pytest.raises(
        LaunchError, match=r"^rank 2 could not be started: .*; the replicas that had .* cancelled$"
    ) as caught:
        await either.launch_replicas(4, entrypoints.sleep)
    started = plane.calls()[before:]
    rows = caught.value.results
    assert [(row.rank, row.status, row.call_id) for row in rows if row.call_id] == [
        (rank, "cancelled", call.id) for rank, call in enumerate(started)
    ]
    assert len(started) == 2
    assert leftovers() == []


async def test_a_launch_whose_answers_are_lost_for_good_names_every_rank_that_may_have_started(either, plane) -> None:
    await either.collect(await either.launch_replicas(1, entrypoints.add), timeout=_BOUND_S)  # deploys
    before = len(plane.calls())
    plane.faults.lost_response("FunctionMap", times=None)
    with pytest.raises(LaunchError, match=r"rank 0 could not be started: Modal's answer is lost") as caught:
        await either.launch_replicas(3, entrypoints.sleep)
    started = plane.calls()[before:]
    plane.reset()
    assert {call.kwargs["rank"] for call in started} <= {row.rank for row in caught.value.results}
    assert {row.status for row in caught.value.results} == {"pending"}
    assert all("its own timeout or `modal app stop` ends it" in row.error for row in caught.value.results)
