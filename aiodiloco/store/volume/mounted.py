"""Which path of this container lies on which Volume: Modal's runtime was told, and left it where it can be read."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from aiodiloco.store.base import check_key
from aiodiloco.store.volume.location import VolumeLocation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mount", "find_volume", "locate"]

_HOME = ("/", "__modal", "volumes")  # Modal's client looks for Volumes here, by their id, in its own error messages
_ARGUMENTS = "MODAL_CONTAINER_ARGUMENTS_PATH"  # set by Modal in every container of a function


@dataclasses.dataclass(frozen=True)
class Mount:
    """Where a part of a Volume is mounted."""

    volume_id: str
    path: Path
    sub_path: str = ""


def find_volume(path: Path) -> VolumeLocation | None:
    """Return what of which Volume is at `path`, an absolute one; None outside of containers, and of all Volumes.

    Raises:
        ValueError: the path is on a Volume, but no key can start like it.
    """
    arguments = os.environ.get(_ARGUMENTS, "")
    if not arguments and "MODAL_TASK_ID" not in os.environ:
        return None
    return locate(path, _read_mounts(arguments))


def locate(path: Path, mounts: tuple[Mount, ...]) -> VolumeLocation | None:
    """Return what of which of these mounted Volumes is at `path`, also where links lead there.

    A Volume that is none of these is told by where Modal keeps it.
    """
    resolved = path.resolve()
    for mount in mounts:
        for found, root in ((Path(os.path.normpath(path)), mount.path), (resolved, mount.path.resolve())):
            if found.is_relative_to(root):
                sub_path = [part for part in mount.sub_path.split("/") if part]
                return _location(mount.volume_id, [*sub_path, *found.relative_to(root).parts])
    if resolved.parts[:3] == _HOME and len(resolved.parts) > 3:
        return _location(resolved.parts[3], resolved.parts[4:])
    return None


def _location(volume_id: str, parts: Sequence[str]) -> VolumeLocation:
    return VolumeLocation(volume_id, check_key("/".join(parts)) if parts else "")


@functools.cache
def _read_mounts(arguments: str) -> tuple[Mount, ...]:
    """Return the mounts that a container was started with; they stay what they are for as long as it lives."""
    if not arguments:
        return ()
    from modal_proto import api_pb2

    try:
        started_with = api_pb2.ContainerArguments.FromString(Path(arguments).read_bytes())
    except OSError:
        return ()
    mounts = started_with.function_def.volume_mounts
    return tuple(Mount(mount.volume_id, Path(mount.mount_path), mount.sub_path) for mount in mounts)
