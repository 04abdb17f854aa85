"""Drivers that are killed or stopped, as real processes with real replicas."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from aiodiloco import attach, reap
from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.lease import read_lease
from aiodiloco.store import open_store

from .drivers import N_REPLICAS, TTL_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodiloco.run import Run

pytestmark = pytest.mark.timeout(60)

_REPOSITORY = Path(__file__).parents[2]


class Driver:
    """A driver process, and everything that descends from it, found by a mark in the environment."""

    def __init__(self, root: Path, point: str) -> None:
        self.root = root
        self.store = str(root / "store")
        self._mark = uuid.uuid4().hex
        self._executors: list[LocalProcessExecutor] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.run.drivers", str(root), self.store, point],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "AIODILOCO_TEST": self._mark},
            cwd=_REPOSITORY,
        )

    def wait_until_launched(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "launched\n"

    def go(self) -> None:
        """Have the replicas finish."""
        (self.root / "go").touch()

    def started(self) -> list[int]:
        """The ranks that ran, once for each process."""
        return sorted(int(path.name.split(".")[0]) for path in self.root.glob("[0-9].*"))

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("AIODILOCO_TEST") == self._mark and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    async def wait_for_nobody(self, within_s: float = 10.0) -> None:
        with anyio.fail_after(within_s):
            while self.living():
                await anyio.sleep(0.02)

    def executor(self) -> LocalProcessExecutor:
        self._executors.append(LocalProcessExecutor(root=self.root / "executor"))
        return self._executors[-1]

    async def attach(self) -> Run:
        return await attach("a-run", store=self.store, executor=self.executor())

    async def generation(self) -> int:
        async with open_store(f"{self.store}/runs/a-run") as store:
            document = await read_lease(store)
        return 0 if document is None else document.generation

    def end(self) -> None:
        for executor in self._executors:
            anyio.run(executor.close)
        for process in self.living():
            process.kill()
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[list[Driver]]:
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        driver.end()


def start(drivers: list[Driver], tmp_path: Path, point: str = "never") -> Driver:
    drivers.append(Driver(tmp_path, point))
    return drivers[-1]


@pytest.mark.parametrize(
    "point",
    [
        "the run was recorded",
        "the lease is won",
        "a replica was spawned",
        "a replica was journaled",
        "the result is written",
    ],
)
async def test_a_run_whose_driver_is_killed_when_is_attached_to_and_collected(
    point: str, tmp_path: Path, drivers: list[Driver]
) -> None:
    driver = start(drivers, tmp_path, point)
    if point == "the result is written":
        driver.go()
    assert driver.process.wait(30) == -signal.SIGKILL
    driver.go()
    result = await (await driver.attach()).wait_for_result()
    assert [(row.status, row.result) for row in result.rows] == [("succeeded", rank) for rank in range(N_REPLICAS)]
    assert Counter(driver.started()) <= Counter(one.row.rank for one in result.attempts), "all are accounted for"
    if "a replica was" not in point:  # then one may have been spawned of which nobody knows
        assert driver.started() == [0, 1, 2], "none was started twice"
    await driver.wait_for_nobody()


async def test_a_driver_killed_while_replicas_run_is_replaced_and_none_is_started_again(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    driver = start(drivers, tmp_path)
    driver.wait_until_launched()
    driver.process.kill()
    run = await driver.attach()
    assert len(run.handles) == N_REPLICAS
    driver.go()
    assert [row.result for row in await run.wait()] == [0, 1, 2]
    assert driver.started() == [0, 1, 2]
    await driver.wait_for_nobody()


async def test_what_a_killed_driver_left_is_reaped(tmp_path: Path, drivers: list[Driver]) -> None:
    driver = start(drivers, tmp_path)
    driver.wait_until_launched()
    assert await reap(driver.store, driver.executor()) == [], "its driver lives"
    driver.process.kill()
    [result] = await reap(driver.store, driver.executor())
    assert [row.status for row in result.rows] == ["cancelled"] * N_REPLICAS
    await driver.wait_for_nobody()
    assert await reap(driver.store, driver.executor()) == []


async def test_a_driver_that_was_stopped_and_wakes_up_deposed_does_no_harm(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    driver = start(drivers, tmp_path)
    driver.wait_until_launched()
    driver.process.send_signal(signal.SIGSTOP)
    run = await driver.attach()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.wait)
        while await driver.generation() < 2:
            await anyio.sleep(0.02)
        driver.process.send_signal(signal.SIGCONT)
        await anyio.sleep(TTL_S)  # long enough for harm
        assert await driver.generation() == 2
        executor = driver.executor()
        assert [await executor.poll(handle) for handle in run.handles] == ["running"] * N_REPLICAS
        driver.go()
    said, _ = await anyio.to_thread.run_sync(lambda: driver.process.communicate(timeout=20))
    assert driver.process.returncode == 0
    assert [row["result"] for row in json.loads(said)] == [row.result for row in await run.wait()] == [0, 1, 2]
    assert driver.started() == [0, 1, 2]
    await driver.wait_for_nobody()


async def test_a_driver_that_is_interrupted_ends_its_replicas_and_the_run(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    driver = start(drivers, tmp_path)
    driver.wait_until_launched()
    began = time.monotonic()
    driver.process.send_signal(signal.SIGINT)
    await driver.wait_for_nobody(20)
    assert time.monotonic() - began < 15
    status = await (await driver.attach()).status()
    assert status.result is not None
    assert (status.result.outcome, status.driver) == ("cancelled", "ended")
