"""A store whose requests fail, hang or lose their replies as told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import anyio

from aiodiloco.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from aiodiloco.store import Buffer, Store


class FaultyStore:
    """A `Store` over another. `fault` is asked with (operation, key) and returns None, "fail", "hang" or "lose"."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.fault: Callable[[str, str], str | None] = lambda _operation, _key: None
        self.num_requests = 0

    @property
    def uri(self) -> str:
        return self.inner.uri

    async def _before(self, operation: str, key: str) -> bool:
        self.num_requests += 1
        fault = self.fault(operation, key)
        if fault == "hang":
            await anyio.sleep_forever()
        if fault == "fail":
            raise StoreError(f"{operation} {key}: 503")
        return fault == "lose"

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        await self._before("get", key)
        return await self.inner.get(key, start=start, length=length, into=into)

    async def put(self, key: str, data: Buffer) -> None:
        loses = await self._before("put", key)
        await self.inner.put(key, data)
        if loses:
            raise StoreError(f"put {key}: the reply was lost")

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        loses = await self._before("put_if_absent", key)
        won = await self.inner.put_if_absent(key, data)
        if loses:  # and the client underneath has repeated it
            return await self.inner.put_if_absent(key, data)
        return won

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        await self._before("list", prefix)
        async for key in self.inner.list(prefix, start_after=start_after):
            yield key

    async def delete(self, key: str) -> None:
        await self._before("delete", key)
        await self.inner.delete(key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None
