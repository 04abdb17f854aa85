"""Who outlives whom: drivers, supervisors, replicas and what replicas started."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from aiodiloco.executors import LocalProcessExecutor, WaitAll
from aiodiloco.records import ReplicaHandle
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DRIVERS = Path(__file__).with_name("drivers.py")
_BOUND_S = 20.0


class Driver:
    """A driver process, and everything that descends from it, found by a mark in the environment."""

    def __init__(self, directory: Path, *call: str, environment: Mapping[str, str] | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, str(_DRIVERS), *call],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "AIODILOCO_TEST": self._mark, **(environment or {})},
            start_new_session=True,  # a foreground process group of its own, for Ctrl-C
        )

    def wait_for_output(self, text: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{text}\n"

    def wait_for_replicas(self, number: int) -> list[int]:
        """Return the pids of the replicas and of their children, once all have started."""
        deadline = time.monotonic() + _BOUND_S
        while len(files := list(self.directory.glob("*.pids"))) < number:
            assert time.monotonic() < deadline, f"only {len(files)} replicas started"
            time.sleep(0.01)
        return [int(pid) for file in files for pid in file.read_text().split()]

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("AIODILOCO_TEST") == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_nobody(self, within_s: float = 3.0) -> None:
        deadline = time.monotonic() + within_s
        while living := self.living():
            assert time.monotonic() < deadline, living
            time.sleep(0.01)

    def end(self) -> None:
        for process in self.living():
            process.kill()
        self.process.wait(_BOUND_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[list[Driver]]:
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        driver.end()


def _start(drivers: list[Driver], tmp_path: Path, *call: str) -> Driver:
    drivers.append(Driver(tmp_path, *call))
    return drivers[-1]


def _handles(tmp_path: Path) -> list[ReplicaHandle]:
    return [ReplicaHandle.from_json(line) for line in (tmp_path / "handles").read_text().splitlines()]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["SIGKILL", "Ctrl-C", "SIGTERM"]
)
async def test_nobody_survives_the_driver(tmp_path: Path, drivers: list[Driver], number: signal.Signals) -> None:
    """Neither replicas nor their children, nor a child that left its process group; and the handles tell the story."""
    driver = _start(drivers, tmp_path, "launch_and_wait", str(tmp_path / "runs"), str(tmp_path), "")
    driver.wait_for_output("launched")
    assert len(driver.wait_for_replicas(3)) == 9
    os.killpg(driver.process.pid, number)  # as a terminal does
    driver.process.wait(_BOUND_S)
    driver.wait_for_nobody()
    rows = await LocalProcessExecutor(root=tmp_path / "runs").collect(_handles(tmp_path), timeout=5, policy=WaitAll())
    assert {row.status for row in rows} == {"cancelled"}
    if number is signal.SIGKILL:
        assert all(row.error and "its driver ended" in row.error for row in rows)


@pytest.mark.parametrize("lose", ["keep", "lose"])
def test_a_forked_child_of_the_driver_does_not_keep_its_replicas(
    tmp_path: Path, drivers: list[Driver], lose: str
) -> None:
    """Nor those of an executor that nobody refers to any more."""
    driver = _start(drivers, tmp_path, "launch_and_fork", str(tmp_path / "runs"), str(tmp_path), lose)
    driver.wait_for_output("launched")
    driver.wait_for_replicas(1)
    [forked] = psutil.Process(driver.process.pid).children()[1:]
    driver.process.kill()
    driver.process.wait(_BOUND_S)
    deadline = time.monotonic() + 3.0
    while living := [process for process in driver.living() if process.pid != forked.pid]:
        assert time.monotonic() < deadline, living
        time.sleep(0.01)
    assert forked.is_running()


def test_a_forked_child_of_the_driver_launches_replicas_of_its_own(tmp_path: Path) -> None:
    """With the executor it was forked with, and without harm to the driver's."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, os\n"
        "from aiodiloco.executors import LocalProcessExecutor\n"
        "from aiodiloco.testing import entrypoints\n"
        f"executor = LocalProcessExecutor(root={str(tmp_path / 'runs')!r})\n"
        "[handle] = asyncio.run(executor.launch_replicas(1, entrypoints.sleep))\n"
        "async def launch():\n"
        "    async with executor:\n"
        "        handles = await executor.launch_replicas(1, entrypoints.add)\n"
        "        rows = await executor.collect(handles, timeout=20)\n"
        "        own = handles[0].metadata['socket'] != handle.metadata['socket']\n"
        "        print(rows[0].status, own, flush=True)\n"
        "if (forked := os.fork()) == 0:\n"
        "    asyncio.run(launch())\n"
        "    os._exit(0)\n"
        "os.waitpid(forked, 0)\n"
        "print(asyncio.run(executor.poll(handle)))\n"
        "asyncio.run(executor.close())\n"
        "print(asyncio.run(executor.poll(handle)))\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=_BOUND_S, check=True)
    assert ran.stdout.splitlines() == ["succeeded True", "running", "cancelled"]


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1])
def test_nobody_survives_a_driver_killed_while_it_launches(tmp_path: Path, drivers: list[Driver], delay: float) -> None:
    driver = _start(drivers, tmp_path, "launch_forever", str(tmp_path / "runs"))
    driver.wait_for_output("launched")
    time.sleep(delay)  # anywhere in the second launch or the cancellations before it
    driver.process.kill()
    driver.process.wait(_BOUND_S)
    driver.wait_for_nobody()


async def test_detached_replicas_outlive_the_driver_and_their_handles_still_work(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    driver = _start(drivers, tmp_path, "launch_and_wait", str(tmp_path / "runs"), str(tmp_path), "detach")
    driver.wait_for_output("launched")
    driver.wait_for_replicas(3)
    driver.process.kill()
    driver.process.wait(_BOUND_S)
    executor = LocalProcessExecutor()  # another root: the handles know theirs
    handles = _handles(tmp_path)
    assert [await executor.poll(handle) for handle in handles] == ["running"] * 3
    await executor.cancel(handles[0])
    rows = await executor.collect(handles, timeout=0.5)
    assert [row.status for row in rows] == ["cancelled"] * 3
    driver.wait_for_nobody()  # the supervisor ends with its last replica, and takes what is left with it


async def test_a_function_of_the_drivers_script_runs_in_replicas(tmp_path: Path, drivers: list[Driver]) -> None:
    """Under another name than `__main__`, so that the script's main guard stays shut."""
    driver = _start(drivers, tmp_path, "launch_from_main", str(tmp_path / "runs"))
    output, _ = driver.process.communicate(timeout=_BOUND_S)
    assert output.splitlines() == [f"__aiodiloco_main__ {rank} True {Path.cwd().name}" for rank in range(2)]


def test_a_script_without_a_main_guard_fails_with_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from aiodiloco.executors import LocalProcessExecutor\n"
        "def work(*, rank): return rank\n"
        "async def main():\n"
        f"    async with LocalProcessExecutor(root={str(tmp_path / 'runs')!r}) as executor:\n"
        "        [row] = await executor.collect(await executor.launch_replicas(1, work), timeout=20)\n"
        "        print(row.error)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=_BOUND_S, check=True)
    assert "put that under `if __name__ == '__main__':`" in ran.stdout


def test_a_function_of_an_interactive_session_is_refused(tmp_path: Path) -> None:
    code = (
        "import asyncio\n"
        "from aiodiloco.executors import LocalProcessExecutor\n"
        "def work(*, rank): return rank\n"
        "asyncio.run(LocalProcessExecutor().launch_replicas(1, work))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, timeout=_BOUND_S, check=False
    )
    assert "EntrypointError" in ran.stderr
    assert "notebook or an interactive session" in ran.stderr


async def test_a_killed_supervisor_takes_its_replicas_with_it_and_rows_say_so(tmp_path: Path) -> None:
    async with LocalProcessExecutor(root=tmp_path) as executor:
        handles = await executor.launch_replicas(2, entrypoints.sleep)
        replicas = [psutil.Process(int(str(handle.metadata["pid"]))) for handle in handles]
        supervisor = replicas[0].parent()
        assert supervisor is not None
        supervisor.kill()
        rows = await executor.collect(handles, timeout=5, policy=WaitAll())
        assert {row.status for row in rows} == {"failed"}
        assert all(row.error and "supervisor process was killed" in row.error for row in rows)
        assert await executor.poll(handles[0]) == "failed"
        await executor.cancel(handles[0])
        psutil.wait_procs(replicas, timeout=2)
        assert not any(replica.is_running() and replica.status() != "zombie" for replica in replicas)
        again = await executor.collect(await executor.launch_replicas(1, entrypoints.add), timeout=20)
        assert [row.status for row in again] == ["succeeded"], "the next launch starts a new supervisor"
    assert not Path(str(handles[0].metadata["socket"])).parent.exists()


async def test_closing_ends_the_replicas_and_the_supervisor_and_can_be_repeated(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(root=tmp_path)
    await executor.close()
    handles = await executor.launch_replicas(2, entrypoints.sleep)
    supervisor = psutil.Process(int(str(handles[0].metadata["pid"]))).parent()
    assert supervisor is not None
    await executor.close()
    await executor.close()
    assert not supervisor.is_running()
    assert [await executor.poll(handle) for handle in handles] == ["cancelled", "cancelled"]


async def test_a_detached_replica_lives_on_when_its_executor_is_closed_and_used_again(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(root=tmp_path, detach=True)
    [first] = await executor.launch_replicas(1, entrypoints.sleep)
    await executor.close()
    [second] = await executor.launch_replicas(1, entrypoints.add)
    assert [row.status for row in await executor.collect([second], timeout=20)] == ["succeeded"]
    assert await executor.poll(first) == "running"
    await executor.cancel(first)
    await executor.close()


async def test_a_closed_executor_leaves_nothing_behind(tmp_path: Path) -> None:
    """A service may make one for each request."""
    executor = LocalProcessExecutor(root=tmp_path)
    await executor.collect(await executor.launch_replicas(1, entrypoints.add), timeout=20)
    await executor.close()
    holder = weakref.ref(executor._local.supervisor)
    del executor
    gc.collect()
    assert holder() is None


async def test_losing_the_executor_object_does_not_end_its_replicas(tmp_path: Path) -> None:
    [handle] = await LocalProcessExecutor(root=tmp_path).launch_replicas(1, entrypoints.sleep, {"seconds": 0.5})
    async with LocalProcessExecutor(root=tmp_path) as other:
        [row] = await other.collect([handle], timeout=20)
    assert row.status == "succeeded"


def test_handles_work_in_another_process(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from aiodiloco.executors import LocalProcessExecutor\n"
        "from aiodiloco.records import ReplicaHandle\n"
        "async def main():\n"
        "    executor = LocalProcessExecutor()\n"
        "    handles = [ReplicaHandle.from_json(line) for line in sys.stdin]\n"
        "    print(*[await executor.poll(handle) for handle in handles])\n"
        "    await executor.cancel(handles[0])\n"
        "    print(*[row.status for row in await executor.collect(handles, timeout=20)])\n"
        "    print(*[line async for line in executor.stream_logs(handles[1])])\n"
        "asyncio.run(main())\n"
    )

    async def main() -> str:
        async with LocalProcessExecutor(root=tmp_path) as executor:
            handles = await executor.launch_replicas(2, entrypoints.print_then_sleep, {"n_lines": 1, "seconds": 600})
            follow = executor.stream_logs(handles[1], follow=True)
            await anext(follow)
            text = "\n".join(handle.to_json() for handle in handles)
            process = await anyio.run_process([sys.executable, "-c", code], input=text.encode())
            return process.stdout.decode()

    assert anyio.run(main).splitlines() == ["running running", "cancelled cancelled", "line 0 of rank 1"]


def test_what_a_killed_supervisor_left_is_removed_by_the_next_one(tmp_path: Path, drivers: list[Driver]) -> None:
    """Killed together with its driver, it removes no directory itself; one that lives or is stopped keeps its."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="short-") as name:  # a Unix socket's path is short
        first, second, third = (Path(name) / "1", Path(name) / "2", Path(name) / "3")
        environment = {"TMPDIR": name}
        directories = lambda: {path for path in Path(name).glob("aiodiloco-*") if (path / "s").exists()}  # noqa: E731
        killed = Driver(first, "launch_and_wait", str(first / "runs"), str(first), "", environment=environment)
        drivers.append(killed)
        killed.wait_for_output("launched")
        [abandoned] = directories()
        [supervisor] = psutil.Process(killed.process.pid).children()
        killed.process.send_signal(signal.SIGSTOP)  # or it might close its executor, now that its replicas have ended
        supervisor.kill()
        killed.end()
        assert directories() == {abandoned}
        (mine := Path(name) / "aiodiloco-mine").mkdir(mode=0o700)
        (mine / "s").write_text("a file of somebody's")
        for path in (abandoned / "s", mine / "s"):
            os.utime(path, (time.time() - 3600,) * 2)  # one that was made this minute may not listen yet
        stopped = Driver(second, "launch_and_wait", str(second / "runs"), str(second), "", environment=environment)
        drivers.append(stopped)
        stopped.wait_for_output("launched")
        [kept] = directories() - {mine}
        assert kept != abandoned
        assert mine in directories()
        [supervisor] = psutil.Process(stopped.process.pid).children()
        supervisor.suspend()
        try:
            last = Driver(third, "launch_and_wait", str(third / "runs"), str(third), "", environment=environment)
            drivers.append(last)
            last.wait_for_output("launched")
            assert kept in directories()
            assert len(directories() - {mine}) == 2
        finally:
            supervisor.resume()
        for driver in (stopped, last):
            driver.process.kill()
            driver.process.wait(_BOUND_S)
            driver.wait_for_nobody()
        assert directories() == {mine}
