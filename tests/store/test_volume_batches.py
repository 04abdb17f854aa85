"""Writes to a Volume go out together, in order, and none takes another with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreUnavailableError
from aiodiloco.store.volume import batches
from aiodiloco.store.volume.batches import Batches, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


class Sent:
    """Takes requests, each when `allow` says so."""

    def __init__(self) -> None:
        self.requests: list[list[tuple[str, bytes]]] = []
        self.allowed = anyio.Semaphore(0)
        self.error: Exception | None = None

    async def send(self, uploads: Sequence[Upload]) -> None:
        await self.allowed.acquire()
        self.requests.append([(upload.path, upload.data) for upload in uploads])
        if self.error is not None:
            raise self.error

    def allow(self, number: int) -> None:
        for _ in range(number):
            self.allowed.release()


async def put_all(sent: Sent, puts: Sequence[tuple[str, bytes]]) -> list[BaseException | None]:
    """Put all at once; return the error of each."""
    writes, errors = Batches(sent.send), dict.fromkeys(range(len(puts)))
    async with anyio.create_task_group() as tasks:

        async def put(index: int) -> None:
            try:
                await writes.put(*puts[index])
            except StoreUnavailableError as exc:
                errors[index] = exc

        for index in range(len(puts)):
            tasks.start_soon(put, index)
    return list(errors.values())


async def test_no_path_is_twice_in_a_request_and_the_last_write_comes_last() -> None:
    sent = Sent()
    sent.allow(100)
    await put_all(sent, [("a", b"1"), ("b", b"1"), ("a", b"2"), ("c", b"1"), ("a", b"3")])
    assert sent.requests == [[("a", b"1"), ("b", b"1")], [("a", b"2"), ("c", b"1")], [("a", b"3")]]


async def test_requests_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files and of bytes; what is larger than a request may be goes alone."""
    monkeypatch.setattr(batches, "_MOST_FILES", 3)
    monkeypatch.setattr(batches, "_MOST_BYTES", 10)
    sent = Sent()
    sent.allow(100)
    await put_all(sent, [(str(index), b"x" * size) for index, size in enumerate([1, 1, 1, 6, 5, 99, 4])])
    assert [[int(path) for path, _ in request] for request in sent.requests] == [[0, 1, 2], [3], [4], [5], [6]]


async def test_a_request_that_fails_fails_for_all_in_it_and_for_none_after() -> None:
    sent = Sent()
    sent.allow(1)
    sent.error = StoreUnavailableError("away")
    assert await put_all(sent, [("a", b""), ("b", b"")]) == [sent.error, sent.error]
    sent.error = None
    sent.allow(1)
    assert await put_all(sent, [("a", b"")]) == [None]


async def test_when_the_one_that_sends_is_cancelled_another_sends_for_the_rest() -> None:
    sent = Sent()
    writes = Batches(sent.send)
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def put_cancelled() -> None:
            with scope:
                await writes.put("cancelled", b"")

        tasks.start_soon(put_cancelled)
        for path in ("a", "b"):
            tasks.start_soon(writes.put, path, b"")
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        sent.allow(1)
    assert sent.requests == [[("a", b""), ("b", b"")]]
