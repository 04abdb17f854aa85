"""`StrikingStore`: a store whose user is struck before, while or after it does something there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from aiodiloco.store import Buffer, Store
    from aiodiloco.testing.chaos.strikes import Strikes

__all__ = ["StrikingStore"]


class StrikingStore:
    """A `Store` over another one, at which `strikes` fall.

    Args:
        store: What to ask. Entered and left with this.
        strikes: Told of every get, put, put_if_absent and delete, before and after.
    """

    def __init__(self, store: Store, strikes: Strikes) -> None:
        self._store = store
        self._strikes = strikes

    @property
    def uri(self) -> str:
        """The URI of the store underneath, which opens it without strikes."""
        return self._store.uri

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        self._strikes.at("before", "get", key)
        data = await self._store.get(key, start=start, length=length, into=into)
        self._strikes.at("after", "get", key)
        return data

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        self._strikes.at("before", "put", key)
        with self._strikes.during("put", key):
            await self._store.put(key, data)
        self._strikes.at("after", "put", key)

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`. Only who wrote it is struck afterwards."""
        self._strikes.at("before", "put_if_absent", key)
        with self._strikes.during("put_if_absent", key):
            written = await self._store.put_if_absent(key, data)
        if written:
            self._strikes.at("after", "put_if_absent", key)
        return written

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        async for key in self._store.list(prefix, start_after=start_after):
            yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        self._strikes.at("before", "delete", key)
        await self._store.delete(key)
        self._strikes.at("after", "delete", key)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._store.__aexit__(exc_type, exc, tb)
