"""Which store a URI names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from aiodiloco.store.base import check_key, is_component
from aiodiloco.store.file import FileStore
from aiodiloco.store.memory import MemoryStore

if TYPE_CHECKING:
    from aiodiloco.store.base import Store

__all__ = ["join_uri", "open_store"]

_SUPPORTED = "file:///absolute/path, a plain path, or memory://name[/prefix]"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(file|memory|s3|modal-volume):")


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Return the store that `uri` names, still to be entered with `async with`.

    Args:
        uri: `file:///absolute/path`; a plain path, relative to the working directory (`~` is the home directory); or
            `memory://name[/prefix]`, which lives in this process only.

    Raises:
        ValueError: no store has such a URI.
    """
    kind, rest = _split(uri)
    if kind == "file":
        return FileStore(rest)
    name, _, prefix = rest.partition("/")
    return MemoryStore(name, prefix)


def join_uri(uri: str | os.PathLike[str], *parts: str) -> str:
    """Return the URI of the store below `uri` whose root is the prefix `parts`, e.g. of one run.

    The result opens the same objects from any working directory: plain paths become absolute `file://` URIs.

    Args:
        uri: As for `open_store`.
        parts: Keys, or single components of them.

    Raises:
        ValueError: no store has such a URI, or a part is not a key (`..` is none).
    """
    below = [check_key(part) for part in parts]
    kind, rest = _split(uri)
    if kind == "file":
        return Path(rest).joinpath(*below).as_uri()
    return "/".join(["memory:/", rest, *below])


def _split(uri: str | os.PathLike[str]) -> tuple[str, str]:
    """Return ("file", absolute path) or ("memory", name and prefix)."""
    text = os.fspath(uri)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"store {uri!r} is not valid: use {_SUPPORTED}")
    match = None if isinstance(uri, os.PathLike) else _SCHEME.match(text)
    if match is None:
        return "file", str(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111 - Path takes ./~x for ~x
    scheme = (match[1] or match[2]).lower()
    if scheme == "file":
        return "file", _file_path(text)
    if scheme == "memory":
        return "memory", _memory_name(text)
    raise ValueError(f"store {text!r}: this version knows no {scheme}:// stores; use {_SUPPORTED}")


def _file_path(text: str) -> str:
    parts = urlsplit(text)
    if not text.lower().startswith("file:///") or parts.query or parts.fragment:
        raise ValueError(f"store {text!r} is not valid: write file:///absolute/path, with ? as %3F and # as %23")
    return unquote(parts.path)


def _memory_name(text: str) -> str:
    name, slash, prefix = text.removeprefix("memory://").rstrip("/").partition("/")
    if not text.startswith("memory://") or not is_component(name):
        raise ValueError(f"store {text!r} is not valid: write memory://name or memory://name/prefix")
    return name + slash + (check_key(prefix) if slash else "")
