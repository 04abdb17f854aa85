"""Where a store is: what a URI says, before anything is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

from aiodiloco.store.base import check_key, is_component
from aiodiloco.store.file import FileStore
from aiodiloco.store.memory import MemoryStore
from aiodiloco.store.volume.mounted import find_volume

if TYPE_CHECKING:
    from aiodiloco.store.base import Store

__all__ = ["FileLocation", "Location", "MemoryLocation"]


class Location(Protocol):
    """What one URI scheme must know; a scheme of its own parses its URIs into one of these.

    Apart from the store, so that a URI is checked and extended without what its store is made of being installed.
    """

    @property
    def uri(self) -> str:
        """The URI, without credentials, that names this place from any working directory and any process."""
        ...

    def below(self, prefix: str) -> Self:
        """Return the place whose keys are those here that start with the key `prefix` and a slash, without them."""
        ...

    def open(self) -> Store:
        """Return the store, still to be entered."""
        ...


@dataclasses.dataclass(frozen=True)
class FileLocation:
    """A directory."""

    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `file:///absolute/path`."""
        parts = urlsplit(text)
        if not text.lower().startswith("file:///") or parts.query or parts.fragment:
            raise ValueError(f"store {text!r} is not valid: write file:///absolute/path, with ? as %3F and # as %23")
        return cls(Path(unquote(parts.path)))

    @property
    def uri(self) -> str:
        """`file:///path`."""
        return self.path.as_uri()

    def below(self, prefix: str) -> Self:
        """Return a directory in this one."""
        return type(self)(self.path / prefix)

    def open(self) -> Store:
        """Return a `FileStore`; on a Modal Volume that is mounted there, its own store."""
        on_volume = find_volume(self.path)
        return FileStore(self.path) if on_volume is None else on_volume.open()


@dataclasses.dataclass(frozen=True)
class MemoryLocation:
    """Objects of this process, by name."""

    name: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `memory://name[/prefix]`."""
        name, slash, prefix = text.removeprefix("memory://").rstrip("/").partition("/")
        if not text.startswith("memory://") or not is_component(name):
            raise ValueError(f"store {text!r} is not valid: write memory://name or memory://name/prefix")
        return cls(name, check_key(prefix) if slash else "")

    @property
    def uri(self) -> str:
        """`memory://name/prefix`."""
        return f"memory://{self.name}{'/' + self.prefix if self.prefix else ''}"

    def below(self, prefix: str) -> Self:
        """Return the same name with a longer prefix."""
        return type(self)(self.name, f"{self.prefix}/{prefix}" if self.prefix else prefix)

    def open(self) -> Store:
        """Return a `MemoryStore`."""
        return MemoryStore(self.name, self.prefix)
