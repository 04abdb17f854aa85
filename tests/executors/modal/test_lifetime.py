"""Who outlives whom: drivers, apps and replicas."""

# ruff: noqa: ASYNC220 - a driver that is to be killed

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from aiodiloco.errors import EntrypointError, ExecutorError
from aiodiloco.executors.modal import ModalExecutor, ModalSpawnExecutor, sources
from aiodiloco.executors.modal import app as app_module
from aiodiloco.records import ReplicaHandle
from aiodiloco.testing import entrypoints

from . import functions

_DRIVERS = Path(__file__).with_name("drivers.py")
_BOUND_S = 30.0


async def _until(holds) -> None:
    with anyio.fail_after(_BOUND_S):
        while not holds():  # noqa: ASYNC110 - what happens on the control plane rings no bell here
            await anyio.sleep(0.01)


async def test_another_process_polls_streams_and_collects_after_the_driver_was_killed(plane, client, tmp_path) -> None:
    """The driver's own script is shipped, and imported under its own name."""
    driver = subprocess.Popen(
        [sys.executable, str(_DRIVERS), "launch_and_wait", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **plane.env},
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "launched\n"
        driver.kill()
    handles = [ReplicaHandle.from_json(line) for line in (tmp_path / "handles").read_text().splitlines()]
    executor = ModalExecutor(client=client)
    assert [await executor.poll(handle) for handle in handles] == ["running"] * 3
    assert [line async for line in executor.stream_logs(handles[1], follow=True)] == ["rank 1 works"]
    await executor.cancel(handles[2])  # has ended meanwhile, as the others: nothing changes
    rows = await executor.collect(handles, timeout=_BOUND_S)
    assert [row.result for row in rows] == [f"drivers {rank} 1" for rank in range(3)]


@pytest.mark.parametrize("kind", ["own function", "any function"])
async def test_closing_waits_until_replicas_that_do_not_heed_are_told_to_be_killed(
    plane, client, leftovers, kind
) -> None:
    """At once after a `collect` whose timeout has passed."""
    if kind == "any function":
        executor = ModalExecutor(client=client, keep=True, grace=1.0)
        entrypoint = "tests.executors.modal.drivers:never_end"
    else:
        executor, entrypoint = ModalSpawnExecutor(functions.never_end, client=client, grace=1.0), None
    async with functions.app.run(client=client):
        async with executor:
            handles = await executor.launch_replicas(3, entrypoint)
            await _until(lambda: all(plane.call(str(handle.call_id)).state == "running" for handle in handles))
            rows = await executor.collect(handles, timeout=1.0)
        assert [row.status for row in rows] == ["running"] * 3
        assert leftovers() == []


def test_the_end_of_a_program_takes_the_replicas_along_that_are_being_cancelled(plane, leftovers) -> None:
    """`asyncio.run` of a `collect` whose timeout passes, and nothing after it; each is told once, and then killed."""
    orders = plane.faults.latency(0, "FunctionCallCancel")
    command = [sys.executable, str(_DRIVERS), "collect_and_leave"]
    env = {**os.environ, **plane.env}
    driver = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (driver.stdout, driver.returncode) == ("running running running", 0), driver.stderr
    assert leftovers() == []
    assert orders.struck == 3 + 3


async def test_closing_stops_the_app_and_its_replicas_and_can_be_repeated(plane, client) -> None:
    executor = ModalExecutor(client=client)
    await executor.close()
    handles = await executor.launch_replicas(2, entrypoints.sleep)
    await executor.close()
    await executor.close()
    assert not any(plane.call(str(handle.call_id)).is_alive for handle in handles)
    again = await executor.collect(await executor.launch_replicas(1, entrypoints.add), timeout=_BOUND_S)
    assert [row.status for row in again] == ["succeeded"], "the next launch deploys again"
    await executor.close()


async def test_keep_keeps_the_app_and_its_replicas(plane, client) -> None:
    async with ModalExecutor(client=client, keep=True) as executor:
        [handle] = await executor.launch_replicas(1, entrypoints.sleep, {"seconds": 0.5})
    async with ModalExecutor(client=client) as other:
        [row] = await other.collect([handle], timeout=_BOUND_S)
    assert row.status == "succeeded"


async def test_an_app_whose_stop_is_not_confirmed_is_an_error_with_the_remedy(plane, client, monkeypatch) -> None:
    monkeypatch.setattr(app_module, "_STOP_BOUND_S", 0.3)
    executor = ModalExecutor(client=client, app_name="hard-to-stop")
    await executor.collect(await executor.launch_replicas(1, entrypoints.add), timeout=_BOUND_S)
    plane.faults.unavailable("AppStop")
    with pytest.raises(ExecutorError, match="run `modal app stop hard-to-stop`"):
        await executor.close()
    plane.faults.clear()
    await executor.close()


async def test_one_app_serves_all_entrypoints_and_is_deployed_again_only_for_new_sources(plane, client) -> None:
    publishings = plane.faults.latency(0, "AppPublish")
    async with ModalExecutor(client=client) as executor:
        for entrypoint in (entrypoints.add, entrypoints.add_async, entrypoints.sleep):
            args = {"seconds": 0} if entrypoint is entrypoints.sleep else {}
            [row] = await executor.collect(await executor.launch_replicas(1, entrypoint, args), timeout=_BOUND_S)
            assert row.status == "succeeded"
        assert publishings.struck == 1
        [row] = await executor.collect(
            await executor.launch_replicas(1, "tests.executors.modal.drivers:work", {"seconds": 0}), timeout=_BOUND_S
        )
        assert row.result == "tests.executors.modal.drivers 0 1"
        assert publishings.struck == 2


async def test_an_entrypoint_is_required(client) -> None:
    with pytest.raises(EntrypointError, match='give a function or "module:function"'):
        await ModalExecutor(client=client).launch_replicas(1)


def test_bad_arguments_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="modules must be a list of module names, not 'mine'"):
        ModalExecutor(modules="mine")
    with pytest.raises(ValueError, match="Modal ends functions after 24 hours"):
        ModalExecutor(timeout=100_000)
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        ModalExecutor(timeout=0)
    with pytest.raises(ValueError, match="gpu"):
        ModalExecutor(gpu="H100:many")


@pytest.mark.parametrize(
    ("entrypoint", "expected"),
    [
        ("aiodiloco.testing.entrypoints:add", sources.Source("aiodiloco.testing.entrypoints:add")),
        ("anyio.abc:f", sources.Source("anyio.abc:f")),
        ("json:dumps", sources.Source("json:dumps")),
        ("tests.training:f", sources.Source("tests.training:f", package="tests")),
    ],
)
def test_what_is_shipped_is_what_is_not_installed(entrypoint, expected) -> None:
    assert sources.source_of(entrypoint) == expected
