"""The start-up probe: a store that lacks a guarantee is refused before a run can lose data by it."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import KeyNotFoundError, StoreError, StoreUnsupportedError
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodiloco.store.base import Store

__all__ = ["probe"]

_OLD, _NEW, _LATE = b"0123456789", b"new", b"late"
_RACERS = [b"a hare", b"a tortoise", b"a snail", b"an ant"]  # none of which is another with a bit flipped
_WRITTEN = {_OLD, _NEW, _LATE, *_RACERS}
_MOST_READS = 6  # of bytes that nobody wrote: damaged on their way, which is no lack of a guarantee
_CLEAN_UP_S = 5.0


async def probe(store: Store, *, timeout_s: float = 30.0) -> None:
    """Check that an open `store` keeps the guarantees of `Store`, with some 30 small requests under `probe/`.

    One process cannot see what another one would: staleness between machines stays unseen.

    Args:
        store: An open store.
        timeout_s: Seconds until a store that does not answer is given up, > 0.

    Raises:
        StoreUnsupportedError: a guarantee is missing; says which, and what a run would lose.
        StoreAccessError: the store may not be read or written.
        StoreError: it did not answer in time, or failed otherwise.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s must be > 0, not {timeout_s!r}")
    probing = _Probe(store, f"probe/{secrets.token_hex(8)}")
    try:
        with anyio.fail_after(timeout_s):
            await map_concurrently(_call, [probing.reading, probing.one_winner, probing.listing])
    except TimeoutError as exc:
        raise StoreError(f"{store.uri} did not answer the start-up probe within {timeout_s:g} s") from exc
    finally:
        with anyio.move_on_after(_CLEAN_UP_S, shield=True):
            await probing.clean_up()


class _Probe:
    """The checks, each under a prefix of its own so that they can run at the same time."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._written: set[str] = set()

    async def reading(self) -> None:
        """Whole and partial reads give what was written last."""
        key = self._key("reading/object")
        await self._store.put(key, _OLD)
        await self._expect(key, _OLD, "read-after-write", "replicas would average missing or old data")
        await self._expect_range(key, 3, 4, _OLD[3:7])
        await self._expect_range(key, 0, 20, _OLD)
        await self._store.put(key, _NEW)
        await self._expect(key, _NEW, "read-after-overwrite", "replicas would read old data")
        await self._store.delete(key)
        try:
            await self._store.get(key)
        except KeyNotFoundError:
            return
        raise self._lacks("read-after-delete", "a deleted object can still be read")

    async def one_winner(self) -> None:
        """Of several writers that create one object exactly one succeeds, and its bytes stay."""
        key = self._key("winner/object")
        results = await map_concurrently(partial(self._store.put_if_absent, key), _RACERS)
        won = [racer for racer, result in zip(_RACERS, results, strict=True) if result]
        loses = "two replicas could hold one rank, and a round could be decided twice"
        if len(won) != 1:
            raise self._lacks("one winner of put_if_absent", f"{len(won)} of {len(_RACERS)} won at once; {loses}")
        if await self._store.put_if_absent(key, _LATE):
            raise self._lacks("one winner of put_if_absent", f"an existing object was replaced; {loses}")
        await self._expect(key, won[0], "the winner's bytes", loses)

    async def listing(self) -> None:
        """A new key is listed at once and in its place, a deleted one not at all."""
        prefix = f"{self._prefix}/listing"
        keys = [self._key(f"listing/{name}") for name in ("a-b/1", "a/1", "a/10", "a/2", "b")]  # in byte order
        await map_concurrently(lambda key: self._store.put(key, b""), reversed(keys))
        await self._expect_list(f"{prefix}/", "", keys)
        await self._expect_list(f"{prefix}/a/1", keys[1], keys[2:3])
        await self._store.delete(keys[1])
        await self._expect_list(f"{prefix}/", keys[0], keys[2:])

    async def clean_up(self) -> None:
        """Delete what was written; what cannot be deleted stays, under a key nobody else uses."""
        try:
            await map_concurrently(self._store.delete, self._written)
        except StoreError:
            return

    def _key(self, name: str) -> str:
        key = f"{self._prefix}/{name}"
        self._written.add(key)
        return key

    async def _expect(self, key: str, data: bytes, guarantee: str, loses: str) -> None:
        for _ in range(_MOST_READS):
            try:
                found = bytes(await self._store.get(key))
            except KeyNotFoundError:
                raise self._lacks(guarantee, f"an object just written was not found; {loses}") from None
            if found == data:
                return
            if found in _WRITTEN:
                break
        raise self._lacks(guarantee, f"wrote {data!r} and read {found[:40]!r}; {loses}")

    async def _expect_range(self, key: str, start: int, length: int, data: bytes) -> None:
        for _ in range(_MOST_READS):
            buffer = bytearray(length)
            found = bytes(await self._store.get(key, start=start, length=length, into=memoryview(buffer)))
            if found == buffer[: len(data)] == data:
                return
        raise self._lacks("range reads", f"bytes {start} to {start + length - 1} of an object read as {found!r}")

    async def _expect_list(self, prefix: str, start_after: str, keys: list[str]) -> None:
        found = [key async for key in self._store.list(prefix, start_after=start_after)]
        if found != keys:
            raise self._lacks(
                "listing", f"expected {keys} and listed {found[:10]}; replicas would miss each other's contributions"
            )

    def _lacks(self, guarantee: str, seen: str) -> StoreUnsupportedError:
        return StoreUnsupportedError(f"{self._store.uri} lacks a guarantee, {guarantee}: {seen}. Use another store.")


async def _call(check: Callable[[], Awaitable[None]]) -> None:
    await check()
