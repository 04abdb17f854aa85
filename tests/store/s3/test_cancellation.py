"""Cancelled at any await, an operation leaves the connection pool as usable as it was."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Literal

import anyio
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from aiodiloco import S3Store
from aiodiloco.store.s3.http import DirectSession
from aiodiloco.testing.cancellation import cancel_at_every_step
from aiodiloco.testing.s3 import FaultyProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DATA = bytes(range(256)) * 8192


@pytest.fixture
async def proxy(moto: str) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(moto) as proxy:
        yield proxy


@pytest.mark.parametrize("how", ["scope", "task"])
@pytest.mark.parametrize(
    ("operation", "http_session"),
    [(name, DirectSession) for name in ("get", "into", "put", "put_if_absent", "list")]
    + [(name, AIOHTTPSession) for name in ("get", "put")],
)
async def test_no_connection_and_no_turn_is_lost(
    proxy: FaultyProxy, bucket: str, operation: str, http_session: type, how: Literal["scope", "task"]
) -> None:
    """Of the only one: if it were, nothing would come through any more."""
    async with S3Store(bucket, endpoint_url=proxy.url, concurrency=1, http_session=http_session) as store:
        await store.put("object", DATA)

        async def run() -> object:
            match operation:
                case "get":
                    return bytes(await store.get("object"))
                case "into":
                    return bytes(await store.get("object", into=memoryview(bytearray(len(DATA)))))
                case "put":
                    return await store.put("new", DATA)
                case "put_if_absent":
                    return await store.put_if_absent("new", DATA)
                case _:
                    return [key async for key in store.list("o")]

        async def check(result: object) -> None:
            if operation != "put_if_absent":  # a cancelled one may be carried out any time later, also before this
                expected = {"get": DATA, "into": DATA, "list": ["object"]}.get(operation)
                assert result in (None, expected), "another result"
            with anyio.fail_after(10):
                await store.delete("new")
                while proxy.num_open > 1:  # noqa: ASYNC110 - a cancelled one is closed a moment later
                    await anyio.sleep(0.001)

        assert await cancel_at_every_step(run, check, how=how) >= 1


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_opening_leaves_nothing_open(proxy: FaultyProxy, bucket: str, how: Literal["scope", "task"]) -> None:
    async def run() -> None:
        async with S3Store(bucket, endpoint_url=proxy.url):
            pass

    async def check(_: None) -> None:
        with anyio.fail_after(10):
            while proxy.num_open:  # noqa: ASYNC110 - closed a moment later
                await anyio.sleep(0.001)

    assert await cancel_at_every_step(run, check, how=how) > 3


async def test_requests_reuse_connections_up_to_the_concurrency(proxy: FaultyProxy, bucket: str) -> None:
    """40 at once over 4 connections, of which none is opened twice."""
    async with S3Store(bucket, endpoint_url=proxy.url, concurrency=4) as store:
        async with anyio.create_task_group() as tasks:
            for index in range(40):
                tasks.start_soon(store.put, f"{index}", b"x")
        assert len([key async for key in store.list()]) == 40
        assert proxy.num_accepted <= 4


@pytest.mark.parametrize("loop_factory", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http_session", [DirectSession, AIOHTTPSession])
def test_a_cancelled_upload_never_completes_with_what_is_written_to_the_buffer_later(
    http_session: type, loop_factory: str
) -> None:
    """The transport may still hold views of it, and flushes what it holds: so what ends a body must be a copy."""
    if loop_factory == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        runner.run(_cancel_uploads_late(http_session))


async def _cancel_uploads_late(http_session: type) -> None:
    """Against a server that reads nothing until the upload is cancelled, at sizes around what the sockets hold."""
    bodies: list[bytes] = []
    may_read = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            reply = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(reply), reply))
        else:
            await may_read.wait()
            bodies.append(await reader.read(-1))
        writer.close()

    async def cancel_upload(store: S3Store, size: int) -> bytes:
        """Return what the server gets of an upload that is cancelled when stuck, its buffer then zeroed."""
        buffer = bytearray(b"x" * size)
        seen = len(bodies)
        may_read.clear()
        upload = asyncio.ensure_future(store.put("object", buffer))
        for _ in range(50):  # were it not stuck by now, the test would see less, and still pass
            await anyio.sleep(0.001)
        upload.cancel()
        await asyncio.wait([upload])
        buffer[:] = bytes(size)
        may_read.set()
        with anyio.fail_after(10):
            while len(bodies) == seen:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        return bodies[-1]

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    async with await asyncio.start_server(serve, sock=listener, limit=1 << 12):
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with S3Store("bucket", endpoint_url=endpoint, http_session=http_session) as store:
            held = len(await cancel_upload(store, 32 * 1024 * 1024))
            assert 0 < held < 32 * 1024 * 1024
            for size in range(max(1, held - 6 * 64 * 1024), held + 2 * 64 * 1024, 64 * 1024):
                body = await cancel_upload(store, size)
                num_ours = body.count(b"x")
                assert len(body) < size or num_ours == size
