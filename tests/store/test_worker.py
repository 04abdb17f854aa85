"""A cancelled caller has its buffers back when it goes on, in a bounded time, and publishes nothing later."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store import FileStore, worker


class Gate:
    """Holds a system call up in its worker thread until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._call = getattr(os, name)
        self._reached, self._opened = threading.Event(), threading.Event()
        monkeypatch.setattr(os, name, self._wait_and_call)

    def _wait_and_call(self, *arguments: object) -> int:
        self._reached.set()
        self._opened.wait(10)
        return self._call(*arguments)

    async def reached(self) -> None:
        assert await to_thread.run_sync(self._reached.wait, 10)

    def open(self) -> None:
        self._opened.set()


async def test_a_cancelled_read_waits_for_the_call_that_fills_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when cancelled by asyncio, past anyio's shield; then nothing writes to the buffer any more."""
    async with FileStore(tmp_path) as store:
        await store.put("object", b"x" * 10_000_000)
        gate = Gate(monkeypatch, "preadv")
        buffer = bytearray(10_000_000)
        reading = asyncio.ensure_future(store.get("object", into=memoryview(buffer)))
        await gate.reached()
        reading.cancel()
        for _ in range(20):
            await checkpoint()
        assert not reading.done()
        gate.open()
        await asyncio.wait([reading])
        assert reading.cancelled()
        filled = buffer.count(b"x")
        assert 0 < filled < len(buffer), "it stops after the slice in hand"
        await store.get("object", length=1)
        assert buffer.count(b"x") == filled


@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
async def test_a_write_cancelled_while_it_reads_the_buffer_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The caller may change the data from then on: half of what is written could be of another version."""
    async with FileStore(tmp_path) as store:
        gate = Gate(monkeypatch, "write")
        writing = asyncio.ensure_future(getattr(store, operation)("object", b"small: one slice"))
        await gate.reached()
        writing.cancel()
        for _ in range(20):
            await checkpoint()
        assert not writing.done()
        gate.open()
        await asyncio.wait([writing])
        assert writing.cancelled()
        with pytest.raises(KeyNotFoundError):
            await store.get("object")
        assert list((tmp_path / ".tmp").iterdir()) == []


async def test_a_dead_disk_holds_a_cancelled_caller_for_a_bounded_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the disk does when it comes back has no effect."""
    monkeypatch.setattr(worker, "_STOP_WAIT_S", 0.05)
    async with FileStore(tmp_path) as store:
        gate = Gate(monkeypatch, "write")
        with anyio.fail_after(5), anyio.move_on_after(0.05) as scope:
            await store.put("object", b"late")
        assert scope.cancelled_caught
        gate.open()
        await store.put("other", b"")
        assert [key async for key in store.list()] == ["other"]


async def test_work_that_was_cancelled_before_its_thread_was_free_is_never_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all threads busy, a waiting write is cancelled at once and leaves nothing."""
    async with FileStore(tmp_path) as store:
        gate = Gate(monkeypatch, "write")
        async with anyio.create_task_group() as tasks:
            for index in range(16):
                tasks.start_soon(store.put, f"busy/{index}", b"x")
            await gate.reached()
            with anyio.fail_after(2), anyio.move_on_after(0.05) as scope:
                await store.put("waiting", b"x")
            gate.open()
        assert scope.cancelled_caught
        assert [key async for key in store.list("waiting")] == []
        assert len([key async for key in store.list("busy/")]) == 16


async def test_a_write_whose_directory_is_pruned_again_and_again_gets_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletes of neighbours may take the directory away between its making and its use."""
    replace, times = Path.replace, []

    def prune_first(temp: Path, target: Path) -> Path:
        times.append(target)
        if len(times) <= 5:
            shutil.rmtree(target.parents[1], ignore_errors=True)
        return replace(temp, target)

    monkeypatch.setattr(Path, "replace", prune_first)
    async with FileStore(tmp_path) as store:
        await store.put("a/b/c", b"x")
        assert bytes(await store.get("a/b/c")) == b"x"
    assert len(times) == 6
