"""What a local replica's process finds, and what its end looks like from outside."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from aiodiloco.errors import LaunchError
from aiodiloco.executors import LocalProcessExecutor, WaitAll
from aiodiloco.executors.local.directory import EXIT
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiodiloco.records import JSON, ReplicaResult

_BOUND_S = 20.0


async def _run(
    executor: LocalProcessExecutor,
    entrypoint: Callable[..., object],
    args: Mapping[str, JSON] | None = None,
    *,
    n_replicas: int = 1,
) -> list[ReplicaResult]:
    return await executor.collect(await executor.launch_replicas(n_replicas, entrypoint, args), timeout=_BOUND_S)


def describe(*, rank: int) -> dict[str, object]:
    return {
        "session": os.getsid(0) == os.getpid(),
        "group": os.getpgrp() == os.getpid(),
        "stdin": sys.stdin.read(),
        "cwd": str(Path.cwd()),
        "path": sys.path,
        "threads": os.environ["OMP_NUM_THREADS"],
        "marker": os.environ.get("AIODILOCO_TEST_MARKER"),
        "random": random.random(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 4,
    }


async def test_a_replica_finds_the_drivers_world_and_none_of_its_siblings(
    executor: LocalProcessExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIODILOCO_TEST_MARKER", "set after the supervisor had started")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [row.result for row in await _run(executor, describe, n_replicas=4)]
    for description in found:
        assert isinstance(description, dict)
        assert description["session"]
        assert description["group"]
        assert description["stdin"] == ""
        assert description["cwd"] == str(tmp_path)
        assert description["path"] == sys.path
        assert description["marker"] == "set after the supervisor had started"
        assert description["blocked"] == []
        assert description["sigint"]
        assert description["descriptors"] == 4  # 0, 1, 2, and the one that lists them
    assert len({description["random"] for description in found if isinstance(description, dict)}) == 4


@pytest.mark.parametrize("said", [None, "3"])
async def test_replicas_share_the_cores_unless_the_user_said_otherwise(
    executor: LocalProcessExecutor, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    n_replicas = 2
    rows = await _run(executor, describe, n_replicas=n_replicas)
    share = str(max(1, len(psutil.Process().cpu_affinity() or [0]) // n_replicas))
    assert {row.result["threads"] for row in rows if isinstance(row.result, dict)} == {said or share}


def torch_threads(*, rank: int) -> list[object]:
    imported_before = "torch" in sys.modules
    import torch

    return [imported_before, torch.get_num_threads(), float(torch.ones(300, 300).mm(torch.ones(300, 300)).sum())]


@pytest.mark.parametrize("preload", [[], ["torch"]])
async def test_torch_in_replicas_heeds_their_share_whether_imported_before_or_after_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: list[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with LocalProcessExecutor(root=tmp_path, preload=preload) as executor:
        await _run(executor, torch_threads)  # now the supervisor has imported torch, or not
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        [row] = await _run(executor, torch_threads)
    assert row.result == [bool(preload), 1, 300.0**3]


def clean_up(*, rank: int, file: str) -> None:
    try:
        Path(file).write_text("started")
        while True:
            try:
                time.sleep(600)
            except Exception:
                continue
    finally:
        Path(file).write_text("cleaned up")


def _write(file: str, text: str) -> None:
    Path(file).write_text(text)


async def clean_up_async(*, rank: int, file: str) -> None:
    try:
        _write(file, "started")
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.01)
        _write(file, "cleaned up")


def wait_until_ready(file: Path, text: str = "started") -> None:
    deadline = time.monotonic() + _BOUND_S
    while not (file.exists() and file.read_text() == text):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def clean_up_in_a_loop_of_its_own(*, rank: int, file: str) -> None:
    asyncio.run(clean_up_async(rank=rank, file=file))


def clean_up_under_load(*, rank: int, file: str) -> None:
    """The signal strikes in the middle of a task's step."""

    async def spin() -> None:
        while True:
            sum(range(10_000))
            await asyncio.sleep(0)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(spin())
            group.create_task(clean_up_async(rank=rank, file=file))

    asyncio.run(both())


@pytest.mark.parametrize("entrypoint", [clean_up, clean_up_async, clean_up_in_a_loop_of_its_own, clean_up_under_load])
async def test_a_cancelled_replica_runs_its_finally_blocks(
    executor: LocalProcessExecutor, tmp_path: Path, entrypoint: Callable[..., object]
) -> None:
    file = tmp_path / "state"
    [handle] = await executor.launch_replicas(1, entrypoint, {"file": str(file)})
    await asyncio.to_thread(wait_until_ready, file)
    await executor.cancel(handle)
    wait_until_ready(file, "cleaned up")
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.exit_code, row.error) == ("cancelled", -15, "cancelled")


class SleepsWhenDeleted:
    def __init__(self, file: str) -> None:
        self.file = file

    def __del__(self) -> None:
        _write(self.file, "started")
        time.sleep(600)


def sleep_in_a_destructor(*, rank: int, file: str) -> None:
    SleepsWhenDeleted(file)
    time.sleep(600)


async def test_a_cancellation_that_python_drops_in_a_destructor_is_tried_again(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    [handle] = await executor.launch_replicas(1, sleep_in_a_destructor, {"file": str(file)})
    await asyncio.to_thread(wait_until_ready, file)
    await executor.cancel(handle)
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.exit_code) == ("cancelled", -15)


def finish_when_told(*, rank: int, file: str) -> str:
    try:
        clean_up(rank=rank, file=file)
    except BaseException:
        return "saved"
    return "never"


def break_when_told(*, rank: int, file: str) -> None:
    try:
        clean_up(rank=rank, file=file)
    finally:
        raise OSError("the disk is full")


async def test_a_replica_that_finishes_its_work_when_told_to_end_has_succeeded(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    [handle] = await executor.launch_replicas(1, finish_when_told, {"file": str(tmp_path / "state")})
    await asyncio.to_thread(wait_until_ready, tmp_path / "state")
    await executor.cancel(handle)
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.result) == ("succeeded", "saved")


async def test_an_error_while_a_cancelled_replica_cleans_up_is_told(
    executor: LocalProcessExecutor, tmp_path: Path
) -> None:
    [handle] = await executor.launch_replicas(1, break_when_told, {"file": str(tmp_path / "state")})
    await asyncio.to_thread(wait_until_ready, tmp_path / "state")
    await executor.cancel(handle)
    [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert (row.status, row.error) == ("cancelled", "cancelled; it ended with OSError: the disk is full")
    assert row.traceback is not None


def ignore_sigterm(*, rank: int, file: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(file).write_text("started")
    time.sleep(600)


async def test_a_replica_that_ignores_its_end_is_killed_though_collect_returned_in_time(tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with LocalProcessExecutor(root=tmp_path / "runs", grace=1.0) as executor:
        handles = await executor.launch_replicas(1, ignore_sigterm, {"file": str(file)})
        await asyncio.to_thread(wait_until_ready, file)
        start = time.monotonic()
        [row] = await executor.collect(handles, timeout=0.2)
        assert time.monotonic() - start < 0.7
        assert row.status == "running"
        assert row.error is not None
        assert "asked for but not confirmed" in row.error
        [row] = await executor.collect(handles, timeout=_BOUND_S)
        assert (row.status, row.exit_code) == ("cancelled", -9)
        assert time.monotonic() - start < 2.5


def miss_one_sigterm(*, rank: int, file: str) -> None:
    """Do what Python does when the signal strikes between its last check and a blocking call: nothing, once."""
    real = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, real))
    Path(file).write_text("started")
    time.sleep(600)


async def test_a_signal_that_python_missed_is_sent_again(tmp_path: Path) -> None:
    file = tmp_path / "state"
    async with LocalProcessExecutor(root=tmp_path / "runs", grace=_BOUND_S) as executor:
        handles = await executor.launch_replicas(1, miss_one_sigterm, {"file": str(file)})
        await asyncio.to_thread(wait_until_ready, file)
        await executor.cancel(handles[0])
        [row] = await executor.collect(handles)
    assert (row.status, row.exit_code) == ("cancelled", -15)  # in good order, not killed


def end_by(*, rank: int, how: str) -> None:
    match how:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGSEGV":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        case "_exit":
            os._exit(7)
        case "sys.exit":
            sys.exit(7)


@pytest.mark.parametrize(
    ("how", "exit_code", "says"),
    [
        ("SIGKILL", -9, "killed by SIGKILL"),
        ("SIGSEGV", -11, "killed by SIGSEGV"),
        ("SIGTERM", -15, "killed by SIGTERM, which nobody asked for here"),
        ("_exit", 7, "ended with exit code 7 and left no word of how"),
        ("sys.exit", 7, "SystemExit: 7"),
    ],
)
async def test_the_exit_code_and_the_cause_of_a_violent_end_are_told(
    executor: LocalProcessExecutor, how: str, exit_code: int, says: str
) -> None:
    [row] = await _run(executor, end_by, {"how": how})
    assert (row.status, row.exit_code) == ("failed", exit_code)
    assert row.error is not None
    assert row.error.startswith(says)


def spoil_records(*, rank: int, how: str, size: int) -> str:
    """Make the end of this replica impossible to record, as a full disk does."""
    directory = Path("/proc/self/fd/1").readlink().parent
    if how == "remove":
        shutil.rmtree(directory)
    else:
        (directory / f".{EXIT}.{os.getppid()}").mkdir()
    return "x" * size


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find the log's directory")
@pytest.mark.parametrize(
    ("how", "size", "status", "says"),
    [
        ("block", 5, "succeeded", None),
        ("block", 1 << 20, "failed", r"returned, but its result of 1048578 bytes could not be recorded in .*/0-0: "),
        ("remove", 5, "failed", r"ended with exit code 1 .*; its end could not be recorded in .*/0-0: No such file"),
    ],
)
async def test_an_end_that_cannot_be_recorded_is_told_all_the_same(
    tmp_path: Path, how: str, size: int, status: str, says: str | None
) -> None:
    """To those who wait, and to those who ask later; nobody blames the supervisor."""
    async with LocalProcessExecutor(root=tmp_path) as executor:
        handles = await executor.launch_replicas(1, spoil_records, {"how": how, "size": size})
        for _ in range(2):
            [row] = await executor.collect(handles, timeout=_BOUND_S)
            assert (row.status, row.call_id) == (status, handles[0].call_id)
            assert row.result == ("xxxxx" if status == "succeeded" else None)
            assert row.error is None if says is None else re.match(says, row.error or "")
        assert await executor.poll(handles[0]) == status


async def test_a_replica_whose_directory_was_removed_is_still_watched_and_ended(tmp_path: Path) -> None:
    """Its supervisor knows of it."""
    async with LocalProcessExecutor(root=tmp_path) as executor:
        [handle] = await executor.launch_replicas(1, entrypoints.sleep)
        shutil.rmtree(tmp_path / handle.run_id)
        assert await executor.poll(handle) == "running"
        await executor.cancel(handle)
        assert await executor.poll(handle) == "cancelled"


async def test_a_lost_record_is_called_that(tmp_path: Path) -> None:
    """Where the supervisor lives: it was not killed."""
    async with LocalProcessExecutor(root=tmp_path) as executor:
        handles = await executor.launch_replicas(1, entrypoints.add)
        await executor.collect(handles, timeout=_BOUND_S)
        (tmp_path / handles[0].run_id / "0-0" / EXIT).write_text("")
        [row] = await executor.collect(handles, timeout=_BOUND_S)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error.startswith("it ended, and its record is missing")


async def test_a_driver_whose_working_directory_is_gone_can_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.syspath_prepend("")
    (tmp_path / "gone").rmdir()
    async with LocalProcessExecutor(root=tmp_path / "runs") as executor:
        assert [row.status for row in await _run(executor, entrypoints.add)] == ["succeeded"]


def leave_children(*, rank: int, then: str) -> list[int]:
    sleeper = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    children = [subprocess.Popen(sleeper).pid for _ in range(2)]
    sys.stdout.write(f"{children[0]} {children[1]}\n")
    if then == "sleep":
        time.sleep(600)
    return children


@pytest.mark.parametrize("then", ["return", "sleep"])
async def test_what_a_replica_started_ends_with_it(executor: LocalProcessExecutor, then: str) -> None:
    [handle] = await executor.launch_replicas(1, leave_children, {"then": then})
    line = await anext(executor.stream_logs(handle, follow=True))
    children = [int(pid) for pid in line.split()]
    if then == "sleep":
        await executor.cancel(handle)
    await executor.collect([handle], timeout=_BOUND_S)
    deadline = time.monotonic() + 2
    while any(psutil.pid_exists(child) and psutil.Process(child).status() != "zombie" for child in children):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def return_size(*, rank: int, size: int) -> str:
    return "x" * size


async def test_a_result_of_megabytes_arrives_and_one_of_more_is_refused(executor: LocalProcessExecutor) -> None:
    [row] = await _run(executor, return_size, {"size": 3 << 20})
    assert row.result == "x" * (3 << 20)
    [row] = await _run(executor, return_size, {"size": 5 << 20})
    assert row.status == "failed"
    assert row.error is not None
    assert "bytes of JSON, more than" in row.error


def use_threads_and_exit_handlers(*, rank: int) -> None:
    import atexit

    atexit.register(sys.stdout.write, "exit handler")
    threading.Timer(0.1, sys.stdout.write, ["thread\n"]).start()
    sys.stdout.write("no line end, ")


async def test_a_replica_ends_as_python_does(executor: LocalProcessExecutor) -> None:
    """Threads are waited for, exit handlers run, output is flushed."""
    handles = await executor.launch_replicas(1, use_threads_and_exit_handlers)
    assert [row.status for row in await executor.collect(handles, timeout=_BOUND_S)] == ["succeeded"]
    assert [line async for line in executor.stream_logs(handles[0])] == ["no line end, thread", "exit handler"]


async def test_what_a_local_replica_cannot_have_is_refused(executor: LocalProcessExecutor) -> None:
    with pytest.raises(ValueError, match="gpu='A100': local replicas share this machine's devices"):
        await executor.launch_replicas(1, describe, gpu="A100")
    with pytest.raises(ValueError, match="entrypoint is required"):
        await executor.launch_replicas(1)
    with pytest.raises(ValueError, match="grace must be"):
        LocalProcessExecutor(grace=-1)
    with pytest.raises(ValueError, match="preload must be a list"):
        LocalProcessExecutor(preload="torch")


async def test_a_root_that_cannot_be_written_fails_the_launch_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    async with LocalProcessExecutor(root=tmp_path / "file") as executor:
        with pytest.raises(LaunchError, match=r"rank 0 could not be started: .*file.* give a root that can be written"):
            await executor.launch_replicas(2, describe)


async def test_failures_of_several_ranks_are_all_told(executor: LocalProcessExecutor) -> None:
    handles = await executor.launch_replicas(3, end_by, {"how": "_exit"})
    rows = await executor.collect(handles, timeout=_BOUND_S, policy=WaitAll())
    assert [row.exit_code for row in rows] == [7, 7, 7]
