"""Volumes as containers see them: a working copy each, which `commit` publishes and `reload` brings up to date.

All containers are processes of one machine, and each must see its own copy at the path that its function names. So
the path is a link to `/proc/self/fd/N`, which every process reads as its own, and a container has its copy open there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from grpclib import GRPCError, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modal_proto import api_pb2

    from aiodiloco.testing.modal.records import Container, Volume

__all__ = ["WorkingCopies"]

_FIRST_DESCRIPTOR, _NUM_DESCRIPTORS = 600, 400  # under the usual limit of 1024, above what a process opens by itself


@dataclasses.dataclass(eq=False)
class _Copy:
    """One container's copy of one volume."""

    directory: Path
    root: str  # the part of the volume that is mounted: "" or "some/path/"
    read_only: bool
    known: dict[str, tuple[tuple[int, int, int], bytes]] = dataclasses.field(default_factory=dict)
    lock: anyio.Lock = dataclasses.field(default_factory=anyio.Lock)


class WorkingCopies:
    """Makes, publishes, renews and removes working copies below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._copies: dict[tuple[str, str], _Copy] = {}
        self._links: list[Path] = []

    def check(self, mounts: Iterable[api_pb2.VolumeMount]) -> None:
        """Make the links at the paths of a function's mounts.

        Raises:
            GRPCError: something else is at such a path, or it cannot be made.
        """
        descriptors: dict[int, str] = {}
        for mount in mounts:
            descriptor = _descriptor(mount.mount_path)
            if other := descriptors.get(descriptor):
                raise _refused(f"{mount.mount_path} and {other} cannot both be mounted here; rename one of them")
            descriptors[descriptor] = mount.mount_path
            self._link(Path(mount.mount_path), f"/proc/self/fd/{descriptor}")

    def _link(self, path: Path, target: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
            self._links.append(path)
        except FileExistsError as exc:
            if not path.is_symlink() or str(path.readlink()) != target:
                raise _refused(f"a volume cannot be mounted at {path}: this machine has something there") from exc
        except OSError as exc:
            raise _refused(f"a volume cannot be mounted at {path} on this machine: {exc}") from exc

    def attach(self, container: Container, volumes: Mapping[str, Volume]) -> list[tuple[int, str]]:
        """Make a container's copies; return (descriptor, directory) of each."""
        opened = []
        for mount in container.function.definition.volume_mounts:
            root = mount.sub_path.strip("/")
            directory = self._directory / container.id / mount.volume_id
            directory.mkdir(parents=True)
            copy = _Copy(directory, f"{root}/" if root else "", mount.read_only)
            self._copies[container.id, mount.volume_id] = copy
            if (volume := volumes.get(mount.volume_id)) is not None:  # it may have been deleted since
                _update(copy, dict(volume.files))
            opened.append((_descriptor(mount.mount_path), str(directory)))
        return opened

    def detach(self, task_id: str) -> None:
        """Remove what a container leaves, with whatever it did not commit."""
        for task, volume_id in [each for each in self._copies if each[0] == task_id]:
            del self._copies[task, volume_id]
        shutil.rmtree(self._directory / task_id, ignore_errors=True)

    def close(self) -> None:
        """Remove the links."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.unlink()

    async def commit(self, task_id: str, volume: Volume) -> None:
        """Publish what a container wrote and removed since it last committed or reloaded; the last writer wins."""
        copy = self._find(task_id, volume)
        async with copy.lock:
            await self._commit(copy, volume)

    async def reload(self, task_id: str, volume: Volume) -> None:
        """Commit, and show the container what others have committed.

        Raises:
            GRPCError: a process has a file of the volume open, or its working directory in it.
        """
        copy = self._find(task_id, volume)
        async with copy.lock:
            if await anyio.to_thread.run_sync(_is_in_use, copy.directory):
                raise _refused("there are open files preventing the operation")
            await self._commit(copy, volume)
            await anyio.to_thread.run_sync(_update, copy, dict(volume.files))

    async def _commit(self, copy: _Copy, volume: Volume) -> None:
        try:
            written, removed = await anyio.to_thread.run_sync(_changes, copy)
        except FileNotFoundError as exc:
            raise GRPCError(Status.ABORTED, f"{exc.filename} was removed during the commit") from exc
        if copy.read_only or copy not in self._copies.values():  # if the container ended, its files are being removed
            return
        volume.files.update({copy.root + path: data for path, data in written.items()})
        for path in removed:
            volume.files.pop(copy.root + path, None)

    def _find(self, task_id: str, volume: Volume) -> _Copy:
        copy = self._copies.get((task_id, volume.id))
        if copy is None:
            raise GRPCError(Status.NOT_FOUND, f"volume {volume.name or volume.id} is not mounted here")
        return copy


def _descriptor(mount_path: str) -> int:
    """Return the number that a path's link names: the same whoever makes the link."""
    return _FIRST_DESCRIPTOR + zlib.crc32(mount_path.encode()) % _NUM_DESCRIPTORS


def _refused(why: str) -> GRPCError:
    return GRPCError(Status.FAILED_PRECONDITION, why)


def _changes(copy: _Copy) -> tuple[dict[str, bytes], list[str]]:
    """Return what was written, by path, and what was removed, and remember both as known."""
    found = {str(path.relative_to(copy.directory)): path for path in copy.directory.rglob("*") if path.is_file()}
    written = {}
    for name, path in found.items():
        signature = _signature(path)
        if copy.known.get(name, (None,))[0] != signature:
            written[name] = path.read_bytes()
            copy.known[name] = (signature, written[name])
    removed = [name for name in copy.known if name not in found]
    for name in removed:
        del copy.known[name]
    return written, removed


def _update(copy: _Copy, files: dict[str, bytes]) -> None:
    """Make a copy what the volume is."""
    wanted = {path.removeprefix(copy.root): data for path, data in files.items() if path.startswith(copy.root)}
    for name in [name for name in copy.known if name not in wanted]:
        (copy.directory / name).unlink(missing_ok=True)
        del copy.known[name]
    new = copy.directory.with_suffix(".new")
    for name, data in wanted.items():
        if name not in copy.known or copy.known[name][1] is not data:
            path = copy.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(data)
            new.replace(path)
            copy.known[name] = (_signature(path), data)


def _signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_in_use(directory: Path) -> bool:
    """Return whether a process that may be looked at has something open below `directory`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                return True
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if directory in descriptor.readlink().parents:
                        return True
    return False
