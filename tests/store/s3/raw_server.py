"""A TCP server that says exactly what a test tells it to, however wrong that is as HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._reader = BufferedByteReceiveStream(stream)

    async def read_head(self) -> str:
        return (await self._reader.receive_until(b"\r\n\r\n", 65536)).decode()

    async def read_request(self) -> tuple[str, bytes]:
        """Return the head and the body of the next request."""
        head = await self.read_head()
        lengths = [line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length:")]
        return head, await self._reader.receive_exactly(int(lengths[0])) if lengths and int(lengths[0]) else b""

    async def answer(self, raw: bytes = OK) -> tuple[str, bytes]:
        """Read a request, send `raw`, and return the request."""
        request = await self.read_request()
        await self.stream.send(raw)
        return request

    async def wait_closed(self) -> None:
        """Return when the client has closed the connection."""
        try:
            while True:
                await self._reader.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


@dataclass
class RawServer:
    """A running server.

    Attributes:
        num_connections: How many were accepted.
        num_open: How many of those have a script that still runs.
    """

    port: int = 0
    num_connections: int = 0
    num_open: int = 0
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/bucket/key"

    def count(self, opened: int) -> None:
        self.num_open += opened
        self.num_connections += max(opened, 0)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_open(self, count: int) -> None:
        """Return when at most `count` connections are open; fail after 10 s."""
        with anyio.fail_after(10):
            while self.num_open > count:
                await self._changed.wait()

    async def wait_all_closed(self) -> None:
        """Return when no connection is open any more; fail after 10 s."""
        await self.wait_open(0)


@asynccontextmanager
async def raw_server(*scripts: Callable[[Peer], Awaitable[object]]) -> AsyncIterator[RawServer]:
    """Serve connection n by `scripts[n]`, the last one also all later ones, and close it when the script returns."""
    server = RawServer()

    async def handle(stream: SocketStream) -> None:
        script = scripts[min(server.num_connections, len(scripts) - 1)]
        server.count(+1)
        try:
            async with stream:
                await script(Peer(stream))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass  # the client left
        finally:
            server.count(-1)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        server.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, handle)
        yield server
        tasks.cancel_scope.cancel()
