"""What containers do with a volume that is mounted there, as anyone would: with files, `commit` and `reload`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import modal


def write(mount: str, files: dict[str, str], volume_id: str = "") -> list[str]:
    """Write files; commit them only if told which volume."""
    for name, text in files.items():
        path = Path(mount, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if volume_id:
        modal.Volume.from_id(volume_id).commit()
    return sorted(path.name for path in Path(mount).iterdir())


def remove(mount: str, name: str) -> None:
    Path(mount, name).unlink()


def write_and_wait(mount: str, name: str, text: str, flag: str) -> None:
    """Write a file, say so by a flag outside of the volume, and wait to be ended."""
    Path(mount, name).write_text(text)
    Path(flag).touch()
    time.sleep(60)


def watch(mount: str, name: str, volume_id: str, started: str, go: str) -> list[bool]:
    """Return whether a file is there at the start, once it was committed elsewhere, and after a reload."""
    seen = [Path(mount, name).exists()]
    Path(started).touch()
    while not Path(go).exists():
        time.sleep(0.01)
    seen.append(Path(mount, name).exists())
    modal.Volume.from_id(volume_id).reload()
    return [*seen, Path(mount, name).exists()]


def reload_with(mount: str, volume_id: str, how: str) -> str:
    """Reload while this process holds on to the volume in some way; return what Modal says to that."""
    Path(mount, "held").write_text("")
    with Path(mount, "held").open() if how == "file" else Path(os.devnull).open():
        if how == "directory":
            os.chdir(mount)
        try:
            modal.Volume.from_id(volume_id).reload()
        except RuntimeError as exc:
            return str(exc)
        finally:
            os.chdir("/")
    return ""


def edit_both(mount: str, volume_id: str, mine: str, common: str) -> None:
    """Change a file of this container's own, and one that another changes as well."""
    Path(mount, mine).write_text(mine)
    Path(mount, common).write_text(mine)
    modal.Volume.from_id(volume_id).commit()
