"""Keys of a directory tree in the order of their bytes, which is not the order of a directory walk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aiodiloco.store.base import is_component

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["walk_keys"]


def walk_keys(root: str, prefix: str, start_after: str) -> Iterator[str]:
    """Iterate over the keys of the files below `root` that start with `prefix` and sort after `start_after`.

    A directory is read only when its turn comes, and not at all when all its keys would be left out. Names that no
    key can have (temp files, an editor's leftovers) are passed over.
    """
    stack = [prefix[: prefix.rfind("/") + 1]]  # what is still to visit, the next on top; directories end in "/"
    while stack:
        key = stack.pop()
        if key and not key.endswith("/"):
            yield key
        else:
            names = _read_directory(os.path.join(root, key))  # noqa: PTH118 - a walk of 10^5 names in plain strings
            wanted = [k for k in (key + name for name in names) if _may_hold(k, prefix, start_after)]
            stack += sorted(wanted, reverse=True)


def _may_hold(key: str, prefix: str, start_after: str) -> bool:
    """Return whether `key`, or a key below it if it ends in a slash, is asked for."""
    if not key.endswith("/"):
        return key.startswith(prefix) and key > start_after
    # All keys below "a/" lie between "a/" and the first string that does not start with it.
    return (key.startswith(prefix) or prefix.startswith(key)) and (key > start_after or start_after.startswith(key))


def _read_directory(path: str) -> list[str]:
    """Return the names in a directory, those of directories with a slash, so that they sort as keys do."""
    try:
        with os.scandir(path) as entries:
            # Links to directories are not followed: one that leads upwards would repeat the tree without end.
            return [
                f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name for e in entries if is_component(e.name)
            ]
    except (FileNotFoundError, NotADirectoryError):  # pruned by another process since its parent was read
        return []
