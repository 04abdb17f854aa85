"""What `FileStore` does on disk, as plain blocking functions: write whole, link once, read a range, remove."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from typing import TYPE_CHECKING, TypeVar

from aiodiloco.errors import KeyNotFoundError, StoreError, StoreUnsupportedError
from aiodiloco.store.pages import new_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aiodiloco.store.worker import Ticket

__all__ = ["TEMP_DIR", "is_file", "link_temp", "prepare_root", "read_range", "remove", "replace_by_temp", "write_temp"]

T = TypeVar("T")

TEMP_DIR = ".tmp"
"""Directory at the root for files being written. Its name is no key component, so no key can name what is in it."""

_SLICE_BYTES = 4 << 20  # between two looks at the ticket: about a millisecond
_TEMP_MAX_AGE_S = 24 * 3600.0
_PARENT_ATTEMPTS = 1000  # each loss needs another process to prune the directory in the microseconds between two calls
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def prepare_root(root: Path) -> None:
    """Make the root and its temp directory, and remove temp files that writers killed long ago left behind."""
    temp_dir = root / TEMP_DIR
    temp_dir.mkdir(parents=True, exist_ok=True)
    probe = temp_dir / secrets.token_hex(8)
    _with_parents(probe, probe.touch)  # a root that cannot be written to fails here, not in the middle of a run
    try:
        # The file system's own clock: on a shared one, this machine's may be days from that of a live writer.
        _sweep(temp_dir, probe.stat().st_mtime - _TEMP_MAX_AGE_S)
    finally:
        probe.unlink(missing_ok=True)


def _sweep(temp_dir: Path, oldest: float) -> None:
    for temp in temp_dir.iterdir():
        try:
            if temp.stat().st_mtime < oldest:
                temp.unlink()
        except FileNotFoundError:  # its writer published it, or another process swept it
            continue


def is_file(path: Path) -> bool:
    """Return whether an object is at `path`."""
    return path.is_file()


def write_temp(root: Path, data: memoryview, ticket: Ticket) -> Path:
    """Write `data` to a new file in the temp directory and return its path; leave nothing when it fails."""
    temp = root / TEMP_DIR / secrets.token_hex(12)
    fd = _with_parents(temp, lambda: os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        try:
            done = 0
            while done < len(data):
                ticket.check()
                done += os.write(fd, data[done : done + _SLICE_BYTES])
        finally:
            os.close(fd)  # some file systems report a full disk only here
        ticket.check()  # from here on the caller may change `data`: what is published must have been read before
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    return temp


def replace_by_temp(temp: Path, target: Path) -> None:
    """Make `target` the file at `temp`, replacing any there was; `temp` is gone afterwards."""
    try:
        _with_parents(target, lambda: temp.replace(target))
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def link_temp(temp: Path, target: Path) -> bool:
    """Make `target` the file at `temp` unless it exists; return whether this did it. `temp` is gone afterwards.

    Raises:
        StoreUnsupportedError: the file system has no hard links.
    """
    try:
        _with_parents(target, lambda: target.hardlink_to(temp))
    except OSError as exc:
        # NFS can report that the name exists for a link it made itself and whose reply was lost.
        if temp.stat().st_nlink == 2:
            return True
        if exc.errno == errno.EEXIST:
            return False
        if exc.errno in _NO_LINKS:
            raise StoreUnsupportedError(
                f"the file system of {target} has no hard links ({exc.strerror}): of several processes that create "
                "one object at once, each would believe it was first; use another file system, such as a local disk"
            ) from exc
        raise
    else:
        return True
    finally:
        temp.unlink(missing_ok=True)


def read_range(path: Path, start: int, length: int | None, into: memoryview | None, ticket: Ticket) -> memoryview:
    """Return bytes `start : start + length` of the file, read straight into `into` or new memory.

    Raises:
        KeyNotFoundError: nothing is there, or a directory.
        StoreError: the file got shorter while it was read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO somebody left there must not hold us
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise KeyNotFoundError(f"no object at {path}") from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise KeyNotFoundError(f"no object at {path}")
        num = max(0, found.st_size - start)
        num = num if length is None else min(num, length)
        view = new_memory(num) if into is None else into.cast("B")[:num]
        done = 0
        while done < len(view):
            ticket.check()
            got = os.preadv(fd, [view[done : done + _SLICE_BYTES]], start + done)
            if not got:
                raise StoreError(f"{path} got shorter while it was read; something other than this library changed it")
            done += got
        return view
    finally:
        os.close(fd)


def remove(root: Path, path: Path) -> None:
    """Remove the file at `path`, if any, and the directories up to `root` that this leaves empty."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        if path.is_dir():  # Linux says EISDIR, macOS EPERM
            return
        raise
    for parent in itertools.takewhile(lambda p: p != root, path.parents):
        if not _remove_empty(parent):
            return


def _remove_empty(directory: Path) -> bool:
    """Remove `directory` if nothing is in it but the empty temp directory of a store opened there; return whether."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in itertools.islice(entries, 2)]
        if names == [TEMP_DIR]:
            (directory / TEMP_DIR).rmdir()
        if names in ([], [TEMP_DIR]):
            directory.rmdir()
            return True
    except OSError:  # another process put something there, or pruned it first
        return False
    return False


def _with_parents(path: Path, action: Callable[[], T]) -> T:
    """Return `action()`, making the directories above `path` whenever they turn out to be missing.

    A delete elsewhere may prune a directory between its making and its use: then make it again.
    """
    for attempt in itertools.count(1):
        try:
            if attempt > 1:
                path.parent.mkdir(parents=True, exist_ok=True)
            return action()
        except FileNotFoundError:
            if attempt == _PARENT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")
