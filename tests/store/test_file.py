"""What only a directory can get wrong: racing processes, killed writers, foreign files, full disks, permissions."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.errors import KeyNotFoundError, StoreAccessError, StoreError, StoreUnsupportedError
from aiodiloco.store import FileStore, disk, probe
from aiodiloco.store.base import is_component
from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.walk import walk_keys


def _names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def _keys(store: FileStore) -> list[str]:
    return [key async for key in store.list()]


def _program(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]


def test_put_if_absent_has_one_winner_among_32_processes(tmp_path: Path) -> None:
    """In each of 20 rounds that all start together; the object is the winner's, and no temp file is left."""
    program = """
        import json, multiprocessing, os, sys, anyio
        from aiodiloco.store import FileStore

        def replica(rank, barrier, won):
            async def main():
                async with FileStore(sys.argv[1]) as store:
                    for round_ in range(20):
                        barrier.wait(30)
                        if await store.put_if_absent(f"rounds/{round_}/decision", b"%02d" % rank * 10_000):
                            won.put((round_, rank))
            anyio.run(main)

        fork = multiprocessing.get_context("fork")
        barrier, won = fork.Barrier(32), fork.Queue()
        processes = [fork.Process(target=replica, args=(rank, barrier, won)) for rank in range(32)]
        for process in processes:
            process.start()
        winners = [won.get(timeout=30) for _ in range(20)]
        for process in processes:
            process.join(30)
        print(json.dumps([winners, won.empty(), [process.exitcode for process in processes]]))
    """
    done = subprocess.run(_program(program, tmp_path), capture_output=True, text=True, timeout=60, check=True)
    winners, none_else, exit_codes = json.loads(done.stdout)
    assert none_else
    assert exit_codes == [0] * 32
    assert sorted(round_ for round_, _ in winners) == list(range(20))
    for round_, rank in winners:
        assert (tmp_path / f"rounds/{round_}/decision").read_bytes() == b"%02d" % rank * 10_000
    assert _names(tmp_path / ".tmp") == []


def _kill_while_writing(program: list[str], temp_dir: Path) -> None:
    with subprocess.Popen(program, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while not _names(temp_dir):
            pass
        writer.send_signal(signal.SIGKILL)


async def test_a_writer_killed_in_the_middle_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    """What it leaves is a hidden temp file: not listed, no obstacle, and swept once it is a day old."""
    program = """
        import sys, anyio
        from aiodiloco.store import FileStore

        async def main():
            async with FileStore(sys.argv[1]) as store:
                print("open", flush=True)
                while True:
                    await store.put("object", b"new" * 10_000_000)

        anyio.run(main)
    """
    async with FileStore(tmp_path) as store:
        await store.put("object", b"old")
        temp_dir = tmp_path / ".tmp"
        for _ in range(20):  # until one is killed while it writes
            await to_thread.run_sync(_kill_while_writing, _program(program, tmp_path), temp_dir)
            if left := _names(temp_dir):
                break
        assert left
        assert bytes(await store.get("object")) in (b"old", b"new" * 10_000_000)
        assert await _keys(store) == ["object"]
        await store.put("object", b"newer")
    day_ago = time.time() - 25 * 3600
    os.utime(temp_dir / left[0], (day_ago, day_ago))
    (temp_dir / "of-a-live-writer").touch()
    async with FileStore(tmp_path):
        assert left[0] not in _names(temp_dir)
        assert "of-a-live-writer" in _names(temp_dir)


async def test_the_age_of_a_temp_file_is_told_by_the_clock_of_its_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by this machine's, which may be days off: the file may belong to a live writer on another machine."""
    async with FileStore(tmp_path):
        pass
    (tmp_path / ".tmp/of-a-live-writer").touch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 48 * 3600)
    async with FileStore(tmp_path):
        assert _names(tmp_path / ".tmp") == ["of-a-live-writer"]


async def test_nothing_is_left_of_failed_and_lost_writes(tmp_path: Path) -> None:
    """Losing a race, or failing to get into place, removes the temp file; deleting all removes the directories."""
    async with FileStore(tmp_path) as store:
        await store.put_if_absent("a/b/c", b"")
        await store.put_if_absent("a/b/c", b"")
        await map_concurrently(lambda _: store.put_if_absent("a/b/d", b"x" * 100_000), range(16))
        for write in (store.put, store.put_if_absent):
            with pytest.raises(StoreError, match="a file is where a directory must be"):
                await write("a/b/c/below", b"")
        with pytest.raises(StoreError, match="a file is where a directory must be"):
            await store.put("a/b", b"")
        assert _names(tmp_path / ".tmp") == []
        await store.delete("a/b/c")
        await store.delete("a/b/d")
        assert _names(tmp_path) == [".tmp"]


async def test_a_store_within_a_store_shares_its_objects(tmp_path: Path) -> None:
    """Runs are opened by their own prefix; deleting everything from above takes their temp directory, too."""
    async with FileStore(tmp_path) as above, FileStore(tmp_path / "runs/a") as run:
        await run.put("object", b"1")
        assert await _keys(above) == ["runs/a/object"]
        await above.delete("runs/a/object")
        assert _names(tmp_path) == [".tmp"]
        await run.put("object", b"2")
        assert bytes(await above.get("runs/a/object")) == b"2"


async def test_what_is_no_object_is_neither_listed_nor_read(tmp_path: Path) -> None:
    """An editor's backups, hidden files, pipes: a directory is open to others."""
    async with FileStore(tmp_path) as store:
        await store.put("a/object", b"")
        for name in ("a/.hidden", "a/-dash", "a/with space", ".DS_Store"):
            (tmp_path / name).touch()
        os.mkfifo(tmp_path / "a/pipe")
        (tmp_path / "a/upwards").symlink_to(tmp_path)
        assert await _keys(store) == ["a/object", "a/pipe", "a/upwards"]
        with anyio.fail_after(5), pytest.raises(KeyNotFoundError):
            await store.get("a/pipe")


async def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else wrote there: not a short object."""
    read = os.preadv

    def truncate_first(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(tmp_path / "object", 10)
        return read(fd, buffers, offset)

    async with FileStore(tmp_path) as store:
        await store.put("object", b"x" * 1000)
        monkeypatch.setattr(os, "preadv", truncate_first)
        with pytest.raises(StoreError, match="got shorter"):
            await store.get("object")


@pytest.mark.parametrize("below", ["", "/runs"])
async def test_a_root_that_is_a_file_is_refused_by_name(tmp_path: Path, below: str) -> None:
    """When it is opened, with what to look for."""
    (tmp_path / "file").touch()
    store = FileStore(f"{tmp_path}/file{below}")
    with pytest.raises(StoreAccessError, match=r"file.*; a file is where a directory must be"):
        async with store:
            pass


def test_a_root_that_may_not_be_written_is_refused_by_name(tmp_path: Path) -> None:
    """As a user who may not write there; `PermissionError` as well, with the remedy."""
    program = """
        import os, sys, anyio
        from aiodiloco.store import FileStore

        async def main():
            try:
                async with FileStore(sys.argv[1]):
                    print("opened")
            except PermissionError as exc:
                print(type(exc).__name__, exc)

        anyio.run(anyio.sleep, 0)  # imports what the other user might not be able to read
        if os.getuid() == 0:
            os.setuid(65534)
        anyio.run(main)
    """
    root = tmp_path / "read-only"
    (root / ".tmp").mkdir(parents=True)
    for directory in (root / ".tmp", root):
        directory.chmod(0o555)
    for directory in tmp_path.parents[:3]:
        directory.chmod(0o755)
    done = subprocess.run(_program(program, root), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("StoreAccessError")
    assert str(root) in done.stdout
    assert "choose a directory that this user may write" in done.stdout


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (errno.ENOSPC, StoreError, "the disk is full"),
        (errno.EDQUOT, StoreError, "the disk is full"),
        (errno.EROFS, StoreAccessError, "may write"),
        (errno.EIO, StoreError, "Input/output error"),
    ],
)
async def test_errors_of_writing_say_what_and_where_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[StoreError], says: str
) -> None:
    """The system's errors as this library's, after half the object was written."""
    calls = []
    write = os.write

    def fail_second(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return write(fd, data)

    async with FileStore(tmp_path) as store:
        monkeypatch.setattr(os, "write", fail_second)
        with pytest.raises(error, match=rf"cannot write 'a/object' in file://.*{says}"):
            await store.put("a/object", b"x" * 10_000_000)
        assert _names(tmp_path) == [".tmp"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
async def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """By `put_if_absent` and so by the probe, instead of a weaker promise."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    async with FileStore(tmp_path) as store:
        with pytest.raises(StoreUnsupportedError, match="has no hard links"):
            await store.put_if_absent("object", b"")
        with pytest.raises(StoreUnsupportedError, match="has no hard links"):
            await probe(store)
        assert _names(tmp_path) == [".tmp"]


async def test_a_link_whose_reply_was_lost_counts_as_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a call and reports its own first success as "exists"."""
    link = os.link

    def link_twice(source: Path, target: Path, **options: bool) -> None:
        link(source, target, **options)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_twice)
    async with FileStore(tmp_path) as store:
        assert await store.put_if_absent("object", b"x") is True
        assert await store.put_if_absent("object", b"y") is False
        assert _names(tmp_path) == [".tmp", "object"]


async def test_a_vanished_root_is_made_again(tmp_path: Path) -> None:
    """Somebody cleaned up: the next write finds no directory at all."""
    async with FileStore(tmp_path / "root") as store:
        (tmp_path / "root/.tmp").rmdir()
        (tmp_path / "root").rmdir()
        assert await _keys(store) == []
        await store.put("a/b", b"x")
        assert bytes(await store.get("a/b")) == b"x"


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    """Rather than an attribute error."""
    with pytest.raises(RuntimeError, match="is not open: use `async with"):
        await FileStore(tmp_path).put("a", b"")


def _num_open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_cancelled_operations_leak_no_file_descriptor_and_no_temp_file(tmp_path: Path) -> None:
    """Cancelled at any point, by the hundred."""
    async with FileStore(tmp_path) as store:
        await store.put("object", b"x" * 1_000_000)
        before = _num_open_files()
        for steps in range(60):
            async with anyio.create_task_group() as tasks:
                for key in "abcdefgh":
                    tasks.start_soon(store.put, key, b"x" * 1_000_000)
                    tasks.start_soon(store.get, "object")
                for _ in range(steps % 20):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert _num_open_files() == before
        assert _names(tmp_path / ".tmp") == []


async def test_a_listing_reads_only_directories_that_can_hold_a_wanted_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those before `start_after` nor those of other prefixes, nor any before its turn."""
    async with FileStore(tmp_path) as store:
        for round_ in range(40):
            for rank in range(3):
                await store.put(f"rounds/{round_:02d}/{rank}", b"")
        read: list[str] = []
        scandir = os.scandir

        def scan(path: str) -> os.ScandirIterator[str]:
            read.append(os.path.relpath(path, tmp_path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)
        found = [key async for key in store.list("rounds/2", start_after="rounds/27/1")]
        assert found == ["rounds/27/2", "rounds/28/0", "rounds/28/1", "rounds/28/2"] + [
            f"rounds/29/{rank}" for rank in range(3)
        ]
        assert read == ["rounds", "rounds/27", "rounds/28", "rounds/29"]
        read.clear()
        assert await anext(store.list("rounds/")) == "rounds/00/0"
        assert len(read) < 20


_COMPONENT = st.text(alphabet="a0-./=@Z", min_size=1, max_size=3).filter(is_component)


@given(
    keys=st.sets(st.lists(_COMPONENT, min_size=1, max_size=3).map("/".join), max_size=12),
    prefix=st.from_regex(r"([a0=][a0=-]*/?){0,3}", fullmatch=True),
    start_after=st.text(alphabet="a0-/=~", max_size=4),
)
def test_walk_gives_what_sorting_all_keys_would(
    tmp_path_factory: pytest.TempPathFactory, keys: set[str], prefix: str, start_after: str
) -> None:
    """For any keys of which none is another's directory, any prefix and any start."""
    root = tmp_path_factory.mktemp("walk")
    keys = {key for key in keys if not any(other.startswith(f"{key}/") for other in keys)}
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
    expected = sorted(key for key in keys if key.startswith(prefix) and key > start_after)
    assert list(walk_keys(str(root), prefix, start_after)) == expected


def test_temp_directory_is_no_key() -> None:
    """Or objects could be written into it."""
    assert not is_component(disk.TEMP_DIR)
