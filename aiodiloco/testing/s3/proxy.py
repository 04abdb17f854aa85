"""A proxy between an S3 client and a server that breaks what it is told to break."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Fault", "FaultyProxy", "Reply", "Request"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asked for.

    Attributes:
        number: How many requests came before this one.
        headers: By lower-case name.
    """

    number: int
    method: str
    target: str
    headers: dict[str, str]


class Fault(enum.Enum):
    """What happens to a request or its reply."""

    CLOSE = "the connection is closed before the request reaches the server"
    LOSE_REPLY = "the server carries the request out, and the connection is closed without a reply"
    TRUNCATE = "the connection is closed in the middle of the reply's body"
    RESET = "the connection is reset in the middle of the reply's body"
    STALL = "the reply stops in the middle of its body"
    HANG = "no reply comes"
    STOP_READING = "the request's body is not read"


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer that the server never gave.

    Attributes:
        code: S3's word for an error, told with `message` in the usual XML; `extra` is further XML in it.
        body: Sent instead of that.
        announced: What Content-Length says, if not the body's.
    """

    status: int
    code: str = ""
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    extra: str = ""
    body: bytes | None = None
    announced: int | None = None

    def to_bytes(self, method: str) -> bytes:
        """Return it as on the wire; HEAD gets no body."""
        xml = f"<Error><Code>{self.code}</Code><Message>{self.message}</Message>{self.extra}</Error>".encode()
        body = (xml if self.code else b"") if self.body is None else self.body
        size = len(body) if self.announced is None else self.announced
        lines = [f"HTTP/1.1 {self.status} Status", f"Content-Length: {size}", "Content-Type: application/xml"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body)


Decide: TypeAlias = Callable[[Request], Fault | Reply | None]


class FaultyProxy:
    """Passes requests on to a server, one connection each, unless `decide` says what else becomes of them.

    Args:
        upstream: `http://host:port` of the server.
        decide: Called with each request; None lets it pass. May be replaced at any time.

    Attributes:
        requests: All that came, in order.
        num_open: Connections of clients open now.
        num_accepted: Connections of clients ever.
    """

    def __init__(self, upstream: str, decide: Decide = lambda _: None) -> None:
        self.upstream = upstream
        self.decide = decide
        self.requests: list[Request] = []
        self.num_open = 0
        self.num_accepted = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        assert self._server is not None, "the proxy is not running"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # a body not read is soon noticed
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=1 << 20)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_open += 1
        self.num_accepted += 1
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the proxy ends
        finally:
            self.num_open -= 1
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Carry one request out; return whether another may come on this connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = self._note(head)
        fault = self.decide(request)
        if fault in {Fault.CLOSE, Fault.STOP_READING, Fault.HANG}:
            if fault is not Fault.CLOSE:
                await _until_gone(reader if fault is Fault.HANG else None)
            return False
        body = await reader.readexactly(int(request.headers.get("content-length", 0)))
        if isinstance(fault, Reply):
            writer.write(fault.to_bytes(request.method))
            await writer.drain()
            return True
        reply = await self._forward(head, body)
        if fault is Fault.LOSE_REPLY:
            return False
        return await _deliver(reply, request, fault, writer)

    def _note(self, head: bytes) -> Request:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.requests.append(Request(len(self.requests), method, target, headers))
        return self.requests[-1]

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        """Return the server's whole reply."""
        parts = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            return await reader.read()
        finally:
            writer.close()


async def _deliver(reply: bytes, request: Request, fault: Fault | None, writer: asyncio.StreamWriter) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    kept = [line for line in head.split(b"\r\n") if line.lower() != b"connection: close"]
    half = fault in {Fault.TRUNCATE, Fault.RESET, Fault.STALL} and request.method != "HEAD"
    writer.write(b"\r\n".join([*kept, b"", b""]) + (body[: len(body) // 2] if half else body))
    await writer.drain()
    if not half:
        return True
    if fault is Fault.STALL:
        await _until_gone(None)
    if fault is Fault.RESET:
        linger = struct.pack("ii", 1, 0)  # closing now sends RST and drops what is unsent
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    return False


async def _until_gone(reader: asyncio.StreamReader | None) -> None:
    """Wait until the client closes the connection, reading on, or without reading for as long as the proxy runs."""
    if reader is None:
        await asyncio.Event().wait()
    else:
        while await reader.read(1 << 16):
            pass
