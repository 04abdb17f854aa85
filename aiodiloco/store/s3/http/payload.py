"""A request body that botocore can measure and send again, in the caller's own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["Payload"]

_SLICE_BYTES = 256 * 1024


class Payload:
    """Bytes to upload, never copied.

    botocore asks a body for its length and, before each retry, to `seek(0)`; a memoryview cannot do the latter, and
    retrying a bare one fails with UnseekableStreamError. `DirectSession` sends `view` as it is; the stock session
    iterates, in slices large enough to be cheap and small enough not to be copied whole.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.on_slice: Callable[[], None] = lambda: None
        self.num_sends = 0

    def __len__(self) -> int:
        return self.view.nbytes

    def seek(self, offset: int) -> None:
        """Do nothing: every sending starts at the beginning."""

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, self.view.nbytes, _SLICE_BYTES):
            yield self.view[start : start + _SLICE_BYTES]
