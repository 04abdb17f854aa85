"""Which path of this container lies on which Volume: Modal's runtime was told, and left it where it can be read."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

from aiodiloco.store.base import check_key
from aiodiloco.store.volume.location import VolumeLocation

__all__ = ["Mount", "find_volume", "locate"]

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
    arguments = os.environ.get(_ARGUMENTS)
    return locate(path, _read_mounts(arguments)) if arguments else None


def locate(path: Path, mounts: tuple[Mount, ...]) -> VolumeLocation | None:
    """Return what of which of these mounted Volumes is at `path`, also where links lead there."""
    for mount in mounts:
        for found, root in ((Path(os.path.normpath(path)), mount.path), (path.resolve(), mount.path.resolve())):
            if found.is_relative_to(root):
                prefix = "/".join(
                    [part for part in mount.sub_path.split("/") if part] + [*found.relative_to(root).parts]
                )
                return VolumeLocation(mount.volume_id, check_key(prefix) if prefix else "")
    return None


@functools.cache
def _read_mounts(arguments: str) -> tuple[Mount, ...]:
    """Return the mounts that a container was started with; they stay what they are for as long as it lives."""
    from modal_proto import api_pb2

    try:
        started_with = api_pb2.ContainerArguments.FromString(Path(arguments).read_bytes())
    except OSError:
        return ()
    mounts = started_with.function_def.volume_mounts
    return tuple(Mount(mount.volume_id, Path(mount.mount_path), mount.sub_path) for mount in mounts)
