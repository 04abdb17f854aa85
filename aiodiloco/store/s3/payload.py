"""The body of an upload, handed to the HTTP session piece by piece straight from the caller's memory."""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING

from anyio import to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["Payload", "checksum_of"]

_SLICE_BYTES = 256 * 1024
_NUM_COPIED = 2


class Payload:
    """An async iterable of slices of `view`, which can be sent again: each iteration starts at the front.

    The last two slices are copies. A transport may keep references to what it has not sent yet (asyncio's from Python
    3.12 on, uvloop's), at most one slice back, and flushes them even when the request is cancelled. If the end of
    the body were the caller's memory, which is the caller's again by then, the server could store a mixture. So
    whatever can complete a request is a copy, and any request cut off before that is incomplete.

    Attributes:
        view: The whole body, contiguous bytes.
        on_slice: Called before each slice: the upload moves.
        num_sends: How often sending has begun. Above 1 the server may have seen, and applied, an earlier one: HTTP
            sessions repeat a PUT on a stale connection without saying so.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.on_slice: Callable[[], None] = lambda: None
        self.num_sends = 0

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        self.num_sends += 1
        size = self.view.nbytes
        for start in range(0, size, _SLICE_BYTES):
            self.on_slice()
            part = self.view[start : start + _SLICE_BYTES]
            yield bytes(part) if start >= size - _NUM_COPIED * _SLICE_BYTES else part

    def __bool__(self) -> bool:
        return True  # an empty body is a body

    def seek(self, offset: int) -> None:
        """Do nothing: botocore rewinds what it sends again, and every iteration starts at the front anyway."""


async def checksum_of(view: memoryview) -> dict[str, str]:
    """Return the parameter of an upload that has the server check what arrives."""
    crc = await to_thread.run_sync(zlib.crc32, view)
    return {"ChecksumCRC32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
