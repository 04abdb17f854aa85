"""What the store asks of a Volume: read a file, write files, look one up, list, remove."""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import TYPE_CHECKING

import anyio
import modal
from grpclib.exceptions import StreamTerminatedError

from aiodiloco.errors import StoreUnavailableError
from aiodiloco.store.volume.errors import RefusedError, asking
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.store.base import Buffer
    from aiodiloco.store.volume.batches import Upload

__all__ = ["VolumeFiles"]

_LIST_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.1
_LEAST_BYTES_PER_S = 1 << 20
_MOST_COPIED_BYTES = 1 << 20  # on the event loop
_WORKER_THREADS = 4


class VolumeFiles:
    """Files of a Volume by path, through Modal's client. Every call is bounded and raises StoreErrors.

    Args:
        volume: The Volume, looked up.
        name: What error messages call it.
        timeout_s: Seconds that a request may take; a read, without a block; a write, besides a second for each MiB.
    """

    def __init__(self, volume: modal.Volume, name: str, timeout_s: float) -> None:
        self._volume = volume
        self._name = name
        self._timeout_s = timeout_s
        self._workers = anyio.CapacityLimiter(_WORKER_THREADS)

    async def read(self, path: str, start: int, length: int | None, into: memoryview | None) -> memoryview:
        """Return bytes `start : start + length` of a file, at the front of `into` if given.

        The client downloads block after block of 8 MiB from the first on; what lies behind the range is not asked for.

        Raises:
            FileNotFoundError: there is no such file.
        """
        parts: list[memoryview] = []
        position, missing = -start, length
        with asking(f"reading {path} in {self._name}", timeout_s=self._timeout_s) as moved:
            async with contextlib.aclosing(self._volume.read_file.aio(f"/{path}")) as blocks:
                async for block in blocks:
                    moved()
                    part = memoryview(block)[max(0, -position) :][:missing]
                    position += len(block)
                    parts.append(part)
                    if missing is not None and (missing := missing - len(part)) <= 0:
                        break
        if sum(len(part) for part in parts) <= _MOST_COPIED_BYTES:
            return _joined(parts, into)
        return await run_in_worker(lambda _: _joined(parts, into), self._workers)

    async def own(self, data: Buffer) -> bytes:
        """Return `data` as bytes of one's own: Modal's client works on them in another thread."""
        if isinstance(data, bytes) or memoryview(data).nbytes <= _MOST_COPIED_BYTES:
            return bytes(data)
        return await run_in_worker(lambda _: bytes(data), self._workers)

    async def write(self, uploads: Sequence[Upload], *, overwrite: bool) -> None:
        """Write files in one request, all or none.

        Raises:
            FileExistsError: one exists, and not `overwrite`.
            RefusedError: one is where a directory is, or the other way round.
        """
        what = f"writing {uploads[0].path}{f' and {len(uploads) - 1} more' if len(uploads) > 1 else ''} in {self._name}"
        # The client does not say how far it has come: a slow link gets the time it takes.
        allowed_s = self._timeout_s + sum(len(upload.data) for upload in uploads) / _LEAST_BYTES_PER_S
        with asking(what, timeout_s=allowed_s):
            try:
                async with self._volume.batch_upload.aio(force=overwrite) as batch:
                    for upload in uploads:
                        batch.put_file(io.BytesIO(upload.data), f"/{upload.path}")
            except RuntimeError as exc:  # the client's, when Modal misses a block that was just uploaded
                raise StoreUnavailableError(f"{what}: {exc}") from exc

    async def exists(self, path: str) -> bool:
        """Return whether there is a file, not a directory, at `path`."""
        try:
            with asking(f"looking up {path} in {self._name}", timeout_s=self._timeout_s):
                return path in await self._list(path, recursive=False)
        except (FileNotFoundError, RefusedError):  # nothing is there, or a file is where a directory would be
            return False

    async def files_below(self, directory: str) -> list[str]:
        """Return the paths of all files below a directory, unsorted; none if there is no such directory."""
        try:
            with asking(f"listing {directory!r} in {self._name}", timeout_s=self._timeout_s):
                return await self._list(directory, recursive=True)
        except (FileNotFoundError, RefusedError):
            return []

    async def _list(self, path: str, *, recursive: bool) -> list[str]:
        """Return the paths of files. The client repeats requests that fail for the moment, but not these."""
        pause_s = _FIRST_PAUSE_S
        for attempt in itertools.count(1):
            try:
                entries = await self._volume.listdir.aio(f"/{path}", recursive=recursive)
                return [entry.path.strip("/") for entry in entries if entry.type == modal.types.FileEntryType.FILE]
            except (modal.exception.ServiceError, modal.exception.InternalError, StreamTerminatedError):
                if attempt == _LIST_ATTEMPTS:
                    raise
            await anyio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    async def remove(self, path: str) -> None:
        """Remove a file, if there is one."""
        try:
            with asking(f"removing {path} in {self._name}", timeout_s=self._timeout_s):
                await self._volume.remove_file.aio(f"/{path}")
        except FileNotFoundError:
            return
        except RefusedError:  # a directory; or Modal has another reason
            if await self.exists(path):
                raise


def _joined(parts: list[memoryview], into: memoryview | None) -> memoryview:
    if into is None:
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    target = into.cast("B")
    done = 0
    for part in parts:
        target[done : done + len(part)] = part
        done += len(part)
    return target[:done]
