"""Many writes in one request: each costs a Volume a commit, and version 1 takes few at a time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.store.volume.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Batches", "Upload"]

_MOST_FILES, _MOST_BYTES = 256, 64 << 20


@dataclasses.dataclass(eq=False)
class Upload:
    """One file to write, its bytes no longer the caller's."""

    path: str
    data: bytes
    is_done: bool = False
    error: Exception | None = None


class Batches:
    """Writes files by `send`, one call at a time, each with everything that came up during the one before.

    There is no task of its own: whoever finds nothing under way sends for all who wait. If that one is cancelled, the
    next sends again, which does no harm.

    Args:
        send: Writes files all or none; raises RefusedError if one of them is at fault.
    """

    def __init__(self, send: Callable[[Sequence[Upload]], Awaitable[None]]) -> None:
        self._send = send
        self._lock = anyio.Lock()
        self._waiting: list[Upload] = []

    async def put(self, path: str, data: bytes) -> None:
        """Write a file; raises what `send` raised."""
        upload = Upload(path, data)
        self._waiting.append(upload)
        try:
            async with self._lock:  # first come, first served: whoever is in front of the queue has the lock
                if not upload.is_done:
                    await self._send_all(self._next())
        finally:
            if upload in self._waiting:
                self._waiting.remove(upload)
        if upload.error is not None:
            raise upload.error

    def _next(self) -> list[Upload]:
        """Return the front of the queue: what fits into a request, and no path twice."""
        batch: list[Upload] = []
        num_bytes = 0
        for upload in self._waiting:
            num_bytes += len(upload.data)
            if batch and (num_bytes > _MOST_BYTES or upload.path in [each.path for each in batch]):
                break
            batch.append(upload)
            if len(batch) == _MOST_FILES:
                break
        return batch

    async def _send_all(self, batch: list[Upload]) -> None:
        try:
            await self._send(batch)
        except RefusedError as exc:
            if len(batch) > 1:  # one is at fault: the others must not suffer for it
                for upload in batch:
                    await self._send_all([upload])
                return
            batch[0].error = exc
        except Exception as exc:  # noqa: BLE001 - raised by everyone in the batch
            for upload in batch:
                upload.error = exc
        for upload in batch:
            upload.is_done = True
            if upload in self._waiting:  # unless its writer was cancelled
                self._waiting.remove(upload)
