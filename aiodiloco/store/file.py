"""`file:///path`: a directory as a store, for one machine or a shared file system."""

from __future__ import annotations

import errno
import itertools
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import anyio

from aiodiloco.errors import StoreAccessError, StoreError, StoreUnsupportedError
from aiodiloco.store import disk
from aiodiloco.store.base import Buffer, check_key, check_prefix, check_range
from aiodiloco.store.volume.mounted import find_volume
from aiodiloco.store.walk import walk_keys
from aiodiloco.store.worker import Ticket, run_in_worker

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

__all__ = ["FileStore"]

T = TypeVar("T")

_NUM_THREADS = 16
_PAGE_KEYS = (32, 256, 2048)  # whoever wants only the first key should not pay for thousands


class FileStore:
    """Objects as files below a directory: the key is the relative path.

    Writes go to a temp file at the root first and are renamed (`put`) or hard-linked (`put_if_absent`) into place, so
    a killed process leaves no part of an object. They survive the death of any process, but not a power failure in
    the next few seconds. All file work runs in worker threads. On NFS, mount with `lookupcache=none,noac`: its
    caches otherwise hide new files from other machines for seconds.

    Args:
        path: The root; made on opening if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = Path(path).absolute()
        self._limiter: anyio.CapacityLimiter | None = None

    @property
    def uri(self) -> str:
        """`file:///path`, absolute, with unusual characters percent-encoded."""
        return self._root.as_uri()

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        check_range(start, length)
        path = self._root / check_key(key)
        if into is not None:
            length = into.nbytes if length is None else min(length, into.nbytes)
        return await self._run(f"read {key!r}", lambda t: disk.read_range(path, start, length, into, t))

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        path, view = self._root / check_key(key), memoryview(data).cast("B")
        await self._run(f"write {key!r}", lambda t: disk.replace_by_temp(disk.write_temp(self._root, view, t), path))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        path, view = self._root / check_key(key), memoryview(data).cast("B")

        def link(ticket: Ticket) -> bool:
            if disk.is_file(path):  # spares the loser of a long-decided race the writing
                return False
            return disk.link_temp(disk.write_temp(self._root, view, ticket), path)

        return await self._run(f"write {key!r}", link)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        keys = walk_keys(str(self._root), check_prefix(prefix), start_after)
        for num in itertools.chain(_PAGE_KEYS, itertools.repeat(_PAGE_KEYS[-1])):
            page = await self._run(f"list {prefix!r}", partial(_next_keys, keys, num))
            for key in page:
                yield key
            if len(page) < num:
                return

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`. Directories left empty go too."""
        path = self._root / check_key(key)
        await self._run(f"delete {key!r}", lambda _: disk.remove(self._root, path))

    async def __aenter__(self) -> Self:
        """Open the store.

        Raises:
            StoreAccessError: the root is not a directory, cannot be made, or cannot be written to.
            StoreUnsupportedError: it is on a mounted Modal Volume, whose other users would see nothing of it.
        """
        if (on_volume := find_volume(self._root)) is not None:
            raise StoreUnsupportedError(
                f"{self._root} is on a Modal Volume: others see what is written there only after a commit; the last "
                f"writer wins; use open_store with this path, or with {on_volume.uri}: both go through Modal's client"
            )
        self._limiter = anyio.CapacityLimiter(_NUM_THREADS)
        await self._run("open", lambda _: disk.prepare_root(self._root))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    async def _run(self, what: str, work: Callable[[Ticket], T]) -> T:
        if self._limiter is None:
            raise RuntimeError(f"{self.uri} is not open: use `async with store:`")
        with self._translated_errors(what):
            return await run_in_worker(work, self._limiter)

    @contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Turn OSErrors into this library's, saying what could not be done, where, and what helps."""
        try:
            yield
        except StoreError:  # some are OSErrors too
            raise
        except OSError as exc:
            raise _translate(exc, f"cannot {what} in {self.uri}: {exc.strerror}", self._root) from exc


def _next_keys(keys: Iterator[str], num: int, _: Ticket) -> list[str]:
    return list(itertools.islice(keys, num))


def _translate(exc: OSError, message: str, root: Path) -> StoreError:
    match exc.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StoreAccessError(f"{message}; choose a directory that this user may write, or change its mode")
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(f"{message}: the disk is full ({root}); free some space or choose another store")
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR | errno.ENOENT:
            return StoreAccessError(f"{message}; a file is where a directory must be, or one of the two is missing")
        case _:
            return StoreError(message)
