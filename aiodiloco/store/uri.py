"""Which store a URI names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aiodiloco.store.base import check_key
from aiodiloco.store.location import FileLocation, Location, MemoryLocation
from aiodiloco.store.s3.location import S3Location
from aiodiloco.store.volume.location import VolumeLocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.store.base import Store

__all__ = ["join_uri", "open_store"]

_SCHEMES: dict[str, Callable[[str], Location]] = {
    "file": FileLocation.parse,
    "memory": MemoryLocation.parse,
    "modal-volume": VolumeLocation.parse,
    "s3": S3Location.parse,
}
_SUPPORTED = (
    "file:///absolute/path, a plain path, memory://name[/prefix], s3://bucket[/prefix], or modal-volume://name[/prefix]"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(file|memory|s3|modal-volume):")


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Return the store that `uri` names, still to be entered with `async with`.

    Args:
        uri: `file:///absolute/path`; a plain path, relative to the working directory (`~` is the home directory);
            `memory://name[/prefix]`, which lives in this process only; `s3://bucket[/prefix][?setting=…&…]`, see
            `S3Store`; or `modal-volume://name[/prefix]`, a Modal Volume. In a Modal container, a path on a mounted
            Volume opens that part of the Volume.

    Raises:
        ImportError: what the store is made of is not installed; says what to install.
        ValueError: no store has such a URI.
    """
    return _locate(uri).open()


def join_uri(uri: str | os.PathLike[str], *parts: str) -> str:
    """Return the URI of the store below `uri` whose root is the prefix `parts`, e.g. of one run.

    The result opens the same objects from any working directory: plain paths become absolute `file://` URIs.

    Args:
        uri: As for `open_store`.
        parts: Keys, or single components of them.

    Raises:
        ValueError: no store has such a URI, or a part is not a key (`..` is none).
    """
    location = _locate(uri)
    for part in parts:
        location = location.below(check_key(part))
    return location.uri


def _locate(uri: str | os.PathLike[str]) -> Location:
    text = os.fspath(uri)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"store {uri!r} is not valid: use {_SUPPORTED}")
    match = None if isinstance(uri, os.PathLike) else _SCHEME.match(text)
    if match is None:
        return FileLocation(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111 - Path takes ./~x for ~x
    scheme = (match[1] or match[2]).lower()
    if scheme not in _SCHEMES:
        raise ValueError(f"store {text!r}: this version knows no {scheme}:// stores; use {_SUPPORTED}")
    return _SCHEMES[scheme](text)
