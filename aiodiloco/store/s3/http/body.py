"""The body of a response: lengths and chunks made out, bytes put where the caller wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from botocore.exceptions import ReadTimeoutError, ResponseStreamingError

from aiodiloco.store.s3.http.connection import PeerClosedError
from aiodiloco.store.s3.http.head import MalformedResponseError, parse_chunk_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.store.s3.http.connection import Connection
    from aiodiloco.store.s3.http.head import ResponseHead

__all__ = ["ResponseBody"]

_READ_BYTES = 256 * 1024
_MAX_TRAILERS = 100


class ResponseBody:
    """What aiobotocore calls the raw response: the bytes after the head, read once, in order.

    Gives the connection back when the last byte was read; closes it when reading fails, is cancelled, or ends early.

    Attributes:
        url: Where the response came from.
    """

    def __init__(
        self, connection: Connection, head: ResponseHead, method: str, url: str, give_back: Callable[[Connection], None]
    ) -> None:
        self._connection: Connection | None = connection
        self._give_back = give_back
        self._keeps_alive = head.keeps_alive
        self._chunked = method != "HEAD" and head.status not in {204, 304} and head.is_chunked()
        self._left = 0 if self._chunked else head.num_body_bytes(method)  # of this chunk, or of all; None: until close
        self._first_chunk = True
        self.url = url
        if self._left == 0 and not self._chunked:
            self._finish()

    @property
    def content(self) -> Self:
        """Itself: aiobotocore's StreamingBody reads from `raw_stream.content`."""
        return self

    def at_eof(self) -> bool:
        """Return whether everything was read."""
        return self._connection is None

    async def readinto(self, view: memoryview) -> int:
        """Return how many bytes were read from the socket into `view`; 0 only at the end of the body.

        Raises:
            ReadTimeoutError: no byte came for the read timeout.
            ResponseStreamingError: the connection broke, ended early or brought something that is not HTTP.
        """
        try:
            return await self._some(view)
        except TimeoutError as exc:
            raise ReadTimeoutError(endpoint_url=self.url, error=exc) from exc
        except (OSError, PeerClosedError, MalformedResponseError) as exc:
            raise ResponseStreamingError(error=exc) from exc

    async def read(self, amt: int | None = -1) -> bytes:
        """Return the next `amt` bytes, fewer only at the end; all of them where `amt` is negative or None.

        Raises:
            ReadTimeoutError, ResponseStreamingError: as for `readinto`.
        """
        wanted = amt if amt is not None and amt >= 0 else None
        parts: list[bytes] = []
        while wanted is None or wanted > 0:
            part = bytearray(_READ_BYTES if wanted is None else min(wanted, _READ_BYTES))
            if not (count := await self.readinto(memoryview(part))):
                break
            parts.append(bytes(memoryview(part)[:count]))
            wanted = None if wanted is None else wanted - count
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection unless everything was read; nothing more can be read."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()  # dropped unread: the socket must not outlive us

    async def _some(self, view: memoryview) -> int:
        if self._connection is None or not view.nbytes:
            return 0
        whole = False
        try:
            count = await self._of_chunk_or_body(self._connection, view)
            whole = True
        finally:
            if not whole:  # also when cancelled
                self.close()
        return count

    async def _of_chunk_or_body(self, connection: Connection, view: memoryview) -> int:
        if self._chunked and self._left == 0 and not await self._next_chunk(connection):
            self._finish()
            return 0
        count = await connection.receive_into(view if self._left is None else view[: self._left])
        if self._left is not None:
            if count == 0:
                raise PeerClosedError(f"the server closed the connection, {self._left} bytes still to come")
            self._left -= count
        if (self._left == 0 and not self._chunked) or count == 0:
            self._finish()
        return count

    async def _next_chunk(self, connection: Connection) -> bool:
        """Read the line that starts the next chunk; return False at the end, trailers read."""
        if not self._first_chunk and await connection.receive_until(b"\n") != b"\r\n":
            raise MalformedResponseError("a chunk is longer than it said")
        self._first_chunk = False
        self._left = parse_chunk_size((await connection.receive_until(b"\n")).rstrip(b"\r\n"))
        if self._left:
            return True
        for _ in range(_MAX_TRAILERS):
            if await connection.receive_until(b"\n") in {b"\r\n", b"\n"}:
                return False
        raise MalformedResponseError(f"more than {_MAX_TRAILERS} trailers")

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._keeps_alive and self._left is not None and not connection.has_leftover:
            self._give_back(connection)
        else:
            connection.close()
