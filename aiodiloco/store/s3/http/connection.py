"""One connection: bytes go from the caller's memory to the socket and back without a copy in between."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from aiodiloco.store.s3.http.head import MAX_HEAD_BYTES, MalformedResponseError, ResponseHead, parse_head
from aiodiloco.store.s3.http.readiness import wait_ready

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Connection", "PeerClosedError"]

_SLICE_BYTES = 256 * 1024  # one TLS write encrypts this much on the loop: 0.1 ms
_JOIN_BYTES = 64 * 1024  # a smaller body goes out with its head, in one packet where it fits
_ENOUGH_BYTES = 256 * 1024
_TURN_BYTES = 1024 * 1024  # then the loop runs others, also when the peer is faster than we: 0.2 ms, with TLS 1 ms
_MAX_INTERIM = 16
_HEAD_READ_BYTES = 8 * 1024  # what follows a head is copied once: read little beyond it


class PeerClosedError(Exception):
    """The peer closed the connection in the middle of a response, or before one."""


class Connection:
    """A connected non-blocking socket, plain or TLS, that carries one exchange at a time.

    After any error or cancellation, `close` is the only thing left to do with it: half a message may be under way.
    Every method raises TimeoutError when no byte moved for `timeout_s`, and OSError when the network failed.

    Attributes:
        has_received: True once the first byte of the present response came.
        num_exchanges: How many requests it carried, the present one included.
    """

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._buffer = bytearray(MAX_HEAD_BYTES)
        self._start = self._end = 0  # received and not yet consumed: self._buffer[start:end]
        self.has_received = False
        self.num_exchanges = 0

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._sock.close()

    @property
    def has_leftover(self) -> bool:
        """True if bytes came that belong to no response: the connection cannot be used again."""
        return self._start < self._end

    def is_usable(self) -> bool:
        """Return whether the idle connection still stands: not closed, and silent as it should be."""
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        return False

    async def send(
        self, head: bytes, body: memoryview, timeout_s: float | None, moved: Callable[[], None]
    ) -> ResponseHead | None:
        """Send a request; return the response head if the peer answered before it had read everything.

        Such an early answer (a refusal, as a rule) ends the sending: the connection cannot be used again.

        Args:
            head: The encoded request head.
            body: Format "B".
            timeout_s: For this exchange, how long no byte may move.
            moved: Called whenever the network took some bytes.

        Raises:
            MalformedResponseError: the early answer is not HTTP.
            PeerClosedError: the peer closed the connection while it was being sent to.
        """
        self._timeout_s = timeout_s
        self.has_received = False
        self.num_exchanges += 1
        if body.nbytes <= _JOIN_BYTES:
            return await self._send_all(memoryview(head + body), moved)
        return await self._send_all(memoryview(head), moved) or await self._send_all(body, moved)

    async def _send_all(self, view: memoryview, moved: Callable[[], None]) -> ResponseHead | None:
        limit = _SLICE_BYTES if isinstance(self._sock, ssl.SSLSocket) else _TURN_BYTES
        turn = 0
        while view.nbytes:
            if turn >= _TURN_BYTES:
                turn = 0
                await asyncio.sleep(0)
            try:
                count = self._sock.send(view[:limit])
                view, turn = view[count:], turn + count
                moved()
            except (BlockingIOError, ssl.SSLWantWriteError):
                readable = await wait_ready(self._sock, self._timeout_s, read=True, write=True)
                if readable and (early := await self._early()):
                    return early
            except ssl.SSLWantReadError:
                await wait_ready(self._sock, self._timeout_s, read=True, write=False)
            except (BrokenPipeError, ConnectionResetError):
                return await self.receive_head()  # often the peer said why before it closed
        return None

    async def _early(self) -> ResponseHead | None:
        """Return the response head that arrives while the request is still being sent, if one does."""
        if not self._receive_some():
            return None  # not for us: TLS housekeeping
        head = await self._one_head()
        while head.is_interim and self.has_leftover:
            head = await self._one_head()
        return None if head.is_interim else head

    async def receive_head(self) -> ResponseHead:
        """Return the head of the response, interim ones skipped.

        Raises:
            MalformedResponseError: not HTTP, or longer than MAX_HEAD_BYTES.
            PeerClosedError: the connection ended before the head did.
        """
        for _ in range(_MAX_INTERIM):
            head = await self._one_head()
            if not head.is_interim:
                return head
        raise MalformedResponseError(f"{_MAX_INTERIM} interim responses and no final one")

    async def _one_head(self) -> ResponseHead:
        return parse_head(await self.receive_until(b"\r\n\r\n"))

    async def receive_until(self, mark: bytes) -> bytes:
        """Return the received bytes up to and including `mark`.

        Raises:
            MalformedResponseError: it did not come within MAX_HEAD_BYTES.
            PeerClosedError: the connection ended before.
        """
        while (found := self._buffer.find(mark, self._start, self._end)) < 0:
            if self._end - self._start >= MAX_HEAD_BYTES:
                raise MalformedResponseError(f"a head or chunk line is longer than {MAX_HEAD_BYTES} bytes")
            if not self._receive_some():
                await wait_ready(self._sock, self._timeout_s, read=True, write=False)
        start, self._start = self._start, found + len(mark)
        return bytes(self._buffer[start : self._start])

    def _receive_some(self) -> bool:
        """Move what has arrived into the buffer; return False if nothing has."""
        if self._start:
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._start, self._end = 0, rest
        stop = min(self._end + _HEAD_READ_BYTES, MAX_HEAD_BYTES)
        count = self._receive_now(memoryview(self._buffer)[self._end : stop])
        if count == 0:
            raise PeerClosedError("the server closed the connection before its response was complete")
        self._end += count or 0
        self.has_received |= count is not None
        return count is not None

    def _receive_now(self, view: memoryview) -> int | None:
        """Return how many bytes were read into `view`, 0 at the end of the stream, None if there are none yet."""
        try:
            return self._sock.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    async def receive_into(self, view: memoryview) -> int:
        """Return how many bytes came into `view`: up to 1 MiB, or 256 KiB and more and then a pause; 0 at the end.

        So a fast network costs few returns to the caller, and on a slow one the caller still sees that bytes move.
        """
        view = view[:_TURN_BYTES]
        taken, enough = self._take(view), min(view.nbytes, _ENOUGH_BYTES)
        while taken < view.nbytes:
            count = self._receive_now(view[taken:])
            if count == 0:
                break
            if count is not None:
                taken += count
            elif taken < enough:
                await wait_ready(self._sock, self._timeout_s, read=True, write=False)
            else:
                break
        if taken == _TURN_BYTES:
            await asyncio.sleep(0)
        return taken

    def _take(self, view: memoryview) -> int:
        """Move bytes that came along with a head into `view`; return how many."""
        count = min(view.nbytes, self._end - self._start)
        view[:count] = memoryview(self._buffer)[self._start : self._start + count]
        self._start += count
        return count
