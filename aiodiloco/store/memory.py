"""`memory://name`: a store in this process, for tests and for trying things out."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Self

import anyio.lowlevel

from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store.base import Buffer, check_key, check_prefix, check_range, is_component

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["MemoryStore"]

# Opening memory://x twice must give the same objects, as two processes opening one bucket do: the one deliberate
# global of the package. Plain dict operations are atomic under the GIL, so loops in several threads may share it.
_NAMED: dict[str, dict[str, memoryview]] = {}


class MemoryStore:
    """Objects in a dict. With a `name`, all stores of that name in this process share them.

    Args:
        name: Shared name, one key component; None makes a store of its own, which no URI opens again.
        prefix: Put before every key, with a slash between.
    """

    def __init__(self, name: str | None = None, prefix: str = "") -> None:
        if name is not None and not is_component(name):
            raise ValueError(f"memory store name {name!r} is not valid: use letters, digits and ._=+@-")
        self._objects: dict[str, memoryview] = {} if name is None else _NAMED.setdefault(name, {})
        self._root = f"{check_key(prefix)}/" if prefix else ""
        self._uri = f"memory://{name or ''}{'/' + prefix if prefix else ''}"

    @property
    def uri(self) -> str:
        """`memory://name/prefix`; opens the same objects in this process only."""
        return self._uri

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        check_range(start, length)
        await anyio.lowlevel.checkpoint()
        try:
            data = self._objects[self._root + check_key(key)]
        except KeyError:
            raise KeyNotFoundError(f"no object {key!r} in {self._uri}") from None
        limit = len(data) if length is None else length
        data = data[start : start + (limit if into is None else min(limit, into.nbytes))]
        if into is None:
            return data
        filled = into.cast("B")[: len(data)]
        filled[:] = data
        return filled

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        await anyio.lowlevel.checkpoint()
        self._objects[self._root + check_key(key)] = memoryview(bytes(data))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        await anyio.lowlevel.checkpoint()
        mine = memoryview(bytes(data))  # a new object each time, so identity tells who won
        return self._objects.setdefault(self._root + check_key(key), mine) is mine

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        check_prefix(prefix)
        await anyio.lowlevel.checkpoint()
        keys = sorted(k[len(self._root) :] for k in list(self._objects) if k.startswith(self._root + prefix))
        for key in keys[bisect.bisect_right(keys, start_after) :]:
            yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        await anyio.lowlevel.checkpoint()
        self._objects.pop(self._root + check_key(key), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None
