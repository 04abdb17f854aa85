from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from aiodiloco.errors import HandleError
from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.executors.local.directory import EXIT, SPAWNED, claim_run, default_root, prune, read_json, write_json
from aiodiloco.records import ReplicaHandle
from aiodiloco.testing import entrypoints

_DAY_S = 24 * 3600.0


def test_the_default_root_is_in_the_users_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_root() == Path("/somewhere/aiodiloco/local")
    monkeypatch.setenv("XDG_STATE_HOME", "relative, so to be ignored")
    assert default_root() == Path.home() / ".local/state/aiodiloco/local"


def test_json_is_written_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": 1})
    write_json(tmp_path / "file", {"a": 2})
    assert read_json(tmp_path / "file") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read_json(tmp_path / "missing") is None


def test_a_run_belongs_to_the_launch_that_came_first(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there"
    assert claim_run(root, "run", "first") == claim_run(root, "run", "first") == root / "run"
    with pytest.raises(FileExistsError, match="the run id 'run' is already used"):
        claim_run(root, "run", "second")
    assert [path.name for path in root.iterdir()] == ["run"]
    assert (root / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", '{"status": "succ', "\\udc80", "[]"])
def test_what_a_power_loss_left_of_a_file_counts_as_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_bytes(text.encode("utf-8", errors="surrogatepass"))
    assert read_json(tmp_path / "file") is None


def _make_run(root: Path, name: str, *, days_old: float, ended: bool, socket_path: str = "/nowhere") -> None:
    replica = claim_run(root, name, "x") / "0-0"
    replica.mkdir()
    write_json(replica / SPAWNED, {"pid": 1, "socket": socket_path})
    if ended:
        write_json(replica / EXIT, {})
    then = time.time() - days_old * _DAY_S
    for path in (*replica.iterdir(), replica, *(root / name).glob("launch-*"), root / name):
        os.utime(path, (then, then))


def test_runs_that_ended_more_than_seven_days_ago_are_pruned_and_no_others(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"/tmp/aiodiloco-test-{os.getpid()}"
        listener.bind(path)
        listener.listen()
        _make_run(tmp_path, "young", days_old=6.9, ended=True)
        _make_run(tmp_path, "old", days_old=7.1, ended=True)
        _make_run(tmp_path, "old-and-lost", days_old=7.1, ended=False)
        _make_run(tmp_path, "old-but-running", days_old=7.1, ended=False, socket_path=path)
        prune(tmp_path)
        Path(path).unlink()
    assert sorted(run.name for run in tmp_path.iterdir()) == ["old-but-running", "young"]
    prune(tmp_path / "missing")


def test_pruning_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on files cut short by a power loss, nor on those it may not read, nor where there is no root."""
    for name in ("cut", "odd", "unreadable"):
        _make_run(tmp_path, name, days_old=8, ended=False)
    (tmp_path / "cut/0-0" / SPAWNED).write_text("")
    (tmp_path / "odd/0-0" / SPAWNED).write_text('{"socket": "\\u0000/\\ud800"}')
    for name in ("cut", "odd"):
        os.utime(tmp_path / name / "0-0" / SPAWNED, (0, 0))
    read_text = Path.read_text

    def refuse(path: Path, **options: str) -> str:
        if "unreadable" in path.parts:
            raise PermissionError(13, "Permission denied")
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    prune(tmp_path)
    assert [run.name for run in tmp_path.iterdir()] == ["unreadable"]
    monkeypatch.setattr(Path, "iterdir", refuse)
    prune(tmp_path / "unreadable")


async def test_launching_prunes(tmp_path: Path) -> None:
    _make_run(tmp_path, "old", days_old=8, ended=True)
    async with LocalProcessExecutor(root=tmp_path) as executor:
        await executor.collect(await executor.launch_replicas(1, entrypoints.add), timeout=20)
    assert not (tmp_path / "old").exists()


async def test_the_handle_of_a_forgotten_run_is_refused_and_a_malformed_one_too(tmp_path: Path) -> None:
    executor = LocalProcessExecutor(root=tmp_path)
    gone = ReplicaHandle(
        0, "local", "run-1", {"call_id": "run-1/0-0", "directory": str(tmp_path), "socket": "/nowhere"}
    )
    with pytest.raises(HandleError, match="nothing is known of rank 0 of run-1"):
        await executor.poll(gone)
    with pytest.raises(HandleError, match="nothing is known of rank 0 of run-1"):
        await executor.cancel(gone)
    with pytest.raises(HandleError, match="nothing is known of rank 0 of run-1"):
        await anext(executor.stream_logs(gone))
    with pytest.raises(HandleError, match="has no directory"):
        await executor.poll(ReplicaHandle(0, "local", "run-1"))
    [row] = await executor.collect([gone])
    assert (row.status, row.error and "nothing is known" in row.error) == ("failed", True)


async def test_what_is_written_is_the_users_own(tmp_path: Path) -> None:
    async with LocalProcessExecutor(root=tmp_path / "runs") as executor:
        [handle] = await executor.launch_replicas(1, entrypoints.print_lines, {"n_lines": 1})
        await executor.collect([handle], timeout=20)
        socket_directory = Path(str(handle.metadata["socket"])).parent
        assert socket_directory.stat().st_mode & 0o777 == 0o700
    run = tmp_path / "runs" / handle.run_id
    assert run.stat().st_mode & 0o777 == 0o700
    assert not socket_directory.exists()


def _everything_written(directory: Path) -> str:
    return " ".join(path.read_text() for path in directory.rglob("*") if path.is_file())


async def test_the_environment_stays_out_of_files_and_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "canary-7d1f")
    async with LocalProcessExecutor(root=tmp_path) as executor:
        [handle] = await executor.launch_replicas(1, entrypoints.add)
        await executor.collect([handle], timeout=20)
    assert "canary" not in handle.to_json()
    assert "canary" not in _everything_written(tmp_path)
