"""The store contract: five coroutines, and the rules for keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["Buffer", "Store", "check_key", "check_prefix", "check_range", "is_component"]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes. A memoryview must have format "B"."""

_COMPONENT = re.compile(r"[A-Za-z0-9_=+@][A-Za-z0-9._=+@-]{0,199}")


@runtime_checkable
class Store(Protocol):
    """Where the replicas of a run meet: named byte strings, written whole.

    Five operations are all the library needs, so that a store for anything is an afternoon's work; prove it with
    `aiodiloco.testing.StoreTests`. What every store must guarantee:

    - **Atomic writes.** A reader sees an object whole or not at all, also when the writer is cancelled or killed.
    - **Strong read-after-write.** Once `put` or `put_if_absent` returned, every `get` and `list` anywhere sees it.
    - **One winner.** Of any number of concurrent `put_if_absent` of one key, exactly one returns True.

    Keys are `/`-separated components of letters, digits and `._=+@-` (see `check_key`). No key may be the directory
    of another (`a` beside `a/b`): a file system cannot hold both. A store is an async context manager; all operations
    happen inside it. After a cancelled write either outcome is possible.
    """

    @property
    def uri(self) -> str:
        """The URI that opens this store again in another process. Never holds credentials."""
        ...

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return bytes `start : start + length` of the object, fewer where it ends earlier.

        Args:
            key: The object.
            start: First byte wanted, >= 0. At or past the end: an empty view.
            length: How many bytes at most; None means to the end.
            into: Writable contiguous bytes to read into, instead of new memory; caps `length`. The view returned is
                then the filled front part of `into`.

        Raises:
            KeyNotFoundError: there is no such object.
            StoreError: it could not be read.
            ValueError: the key is not valid, or `start` or `length` is negative.
        """
        ...

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object whole, replacing any there was. `data` must not change until this returns."""
        ...

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object whole unless the key exists; return True if this call wrote it."""
        ...

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over the keys that start with the string `prefix` and sort after `start_after`, in byte order.

        `prefix` need not end at a component: `"rounds/1"` also lists `rounds/10/…`. Read lazily, page by page:
        stopping early costs nothing more. `start_after` may be any string.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object. A missing key is no error."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def check_key(key: str) -> str:
    """Return `key`, or raise ValueError naming what is wrong with it.

    A key is 1 to 900 characters: components joined by single slashes, each of letters, digits and `._=+@-`, not
    starting with a dot or a dash, so that it is a safe relative path and a safe URL path everywhere.
    """
    if not 0 < len(key) <= 900 or not all(_COMPONENT.fullmatch(part) for part in key.split("/")):
        raise ValueError(
            f"store key {key[:200]!r} is not valid: join components of letters, digits and ._=+@- by '/'; "
            "a component starts with none of '.-'"
        )
    return key


def is_component(name: str) -> bool:
    """Return whether `name` could stand between the slashes of a key."""
    return _COMPONENT.fullmatch(name) is not None


def check_range(start: int, length: int | None) -> None:
    """Raise ValueError if `start` or `length` is negative."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"cannot read {length} bytes from {start}: start and length must be >= 0")


def check_prefix(prefix: str) -> str:
    """Return `prefix` (any front part of a key, also empty), or raise ValueError."""
    if prefix:
        check_key(prefix if not prefix.endswith("/") else prefix[:-1])
    return prefix
