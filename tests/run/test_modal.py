"""Runs on Modal: the unmodified client and container runtime, against a control plane of this machine."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco import ModalExecutor, Respawn, attach, launch, reap
from aiodiloco.testing import entrypoints
from aiodiloco.testing.modal import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.timeout(60)

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plane() -> Iterator[LoopbackModal]:
    with LoopbackModal(preload=["aiodiloco.executors.modal.replica", "aiodiloco.testing.entrypoints"]) as plane:
        yield plane


@pytest.fixture
async def executor(plane: LoopbackModal) -> AsyncIterator[ModalExecutor]:
    client = await plane.client()
    async with ModalExecutor(client=client, grace=0.1) as executor:
        yield executor
    await client.close.aio()


def alive(plane: LoopbackModal) -> list[str]:
    return [call.id for call in plane.calls() if call.is_alive]


async def test_a_replica_whose_container_is_lost_is_started_again(
    plane: LoopbackModal, executor: ModalExecutor, tmp_path: Path
) -> None:
    policy = Respawn(max_restarts=0, max_preemptions=1, backoff=0.0)
    async with launch(executor, entrypoints.sleep, 2, store=tmp_path, timeout=60, policy=policy) as run:
        lost = str(run.handles[1].call_id)
        with anyio.fail_after(20):
            while not plane.call(lost).containers:
                await anyio.sleep(0.02)
        await plane.crash(lost)
        with anyio.fail_after(20):
            while run.handles[1].call_id == lost:
                await anyio.sleep(0.02)
        rows = await run.cancel()
    assert [row.status for row in rows] == ["cancelled"] * 2
    result = (await run.status()).result
    assert result is not None
    ends = [(one.row.rank, one.incarnation, one.row.status, one.row.preempted) for one in result.attempts]
    assert ends == [(0, 0, "cancelled", False), (1, 0, "failed", True), (1, 1, "cancelled", False)]
    assert alive(plane) == []


async def test_what_a_killed_driver_left_on_modal_is_found_and_reaped(
    plane: LoopbackModal, executor: ModalExecutor, tmp_path: Path
) -> None:
    _kill_a_driver(plane, tmp_path)
    run = await attach("a-run", store=tmp_path, executor=executor)
    assert sorted(str(handle.call_id) for handle in run.handles) == sorted(alive(plane))
    [result] = await reap(tmp_path, executor)
    assert [row.status for row in result.rows] == ["cancelled"] * 2
    assert alive(plane) == []
    assert await run.wait() == list(result.rows)


def _kill_a_driver(plane: LoopbackModal, directory: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.run.modal_drivers", str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **plane.env},
        cwd=_REPOSITORY,
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "launched\n"
        driver.kill()
