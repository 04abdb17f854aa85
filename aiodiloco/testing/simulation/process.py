"""One simulated process: a replica whose way to the store can be cut or held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from aiodiloco.store import Buffer, Store

__all__ = ["ProcessStore"]

T = TypeVar("T")


class ProcessStore:
    """A store as one process sees it: a process that was killed sends nothing more, whatever its code still does.

    Args:
        store: What all processes share.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_cut = False
        self._held_until = 0.0

    @property
    def uri(self) -> str:
        """The URI of the store underneath."""
        return self._store.uri

    def cut(self) -> None:
        """Let nothing pass any more, nor any answer come back."""
        self._is_cut = True

    def hold(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        self._held_until = anyio.current_time() + seconds

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        return await self._pass(lambda: self._store.get(key, start=start, length=length, into=into))

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        await self._pass(lambda: self._store.put(key, data))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        return await self._pass(lambda: self._store.put_if_absent(key, data))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        await self._gate()
        async for key in self._store.list(prefix, start_after=start_after):
            await self._gate()
            yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        await self._pass(lambda: self._store.delete(key))

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._store.__aexit__(exc_type, exc, tb)

    async def _pass(self, request: Callable[[], Awaitable[T]]) -> T:
        await self._gate()
        result = await request()
        await self._gate()
        return result

    async def _gate(self) -> None:
        await anyio.sleep_until(self._held_until)
        if self._is_cut:
            await anyio.sleep_forever()
