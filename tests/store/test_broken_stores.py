"""Stores that lack a guarantee: the conformance suite finds each of them, and the start-up probe refuses to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aiodiloco.errors import KeyNotFoundError, StoreAccessError, StoreError, StoreUnsupportedError
from aiodiloco.store import Buffer, MemoryStore, Store, probe
from aiodiloco.testing import StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Overwrites(MemoryStore):
    """Takes "only if absent" for a remark, as S3-compatible servers without conditional writes do."""

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        await self.put(key, data)
        return True


class LooksThenWrites(MemoryStore):
    """Right when asked once, wrong in a race."""

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        try:
            await self.get(key)
        except KeyNotFoundError:
            await self.put(key, data)
            return True
        return False


class RefusesButWrites(MemoryStore):
    """Names one winner and keeps another's bytes."""

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        won = await super().put_if_absent(key, data)
        await self.put(key, data)
        return won


class Unsorted(MemoryStore):
    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        for key in reversed([key async for key in super().list(prefix, start_after=start_after)]):
            yield key


class WalksDirectories(MemoryStore):
    """Sorts component by component, as a walk does."""

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        keys = [key async for key in super().list(prefix, start_after=start_after)]
        for key in sorted(keys, key=lambda key: key.split("/")):
            yield key


class ListsFromTheStart(MemoryStore):
    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        async for key in super().list(prefix):
            yield key


class ListsLate(MemoryStore):
    """The first listing that should show an object does not."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        async for key in super().list(prefix, start_after=start_after):
            if key in self._shown:
                yield key
            self._shown.add(key)


class ListsTheDeleted(MemoryStore):
    async def delete(self, key: str) -> None:
        await self.put(key, b"")


class ReadsStale(MemoryStore):
    """Serves the version before last."""

    async def put(self, key: str, data: Buffer) -> None:
        if await super().put_if_absent(key, data) or await super().put_if_absent(f"{key}-stale", b""):
            return
        await super().put(key, data)


class IgnoresRanges(MemoryStore):
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        return await super().get(key, into=into)


class NewMemory(MemoryStore):
    """Returns the bytes, but not in the caller's buffer."""

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        return await super().get(key, start=start, length=length)


class Tears(MemoryStore):
    """Writes in two steps: a reader can see the first alone."""

    async def put(self, key: str, data: Buffer) -> None:
        await super().put(key, bytes(data)[: len(data) // 2])
        await super().put(key, data)


class RefusesWrites(MemoryStore):
    async def put(self, key: str, data: Buffer) -> None:
        raise StoreAccessError(f"{self.uri} is read-only; choose another")


class NeverAnswers(MemoryStore):
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        await anyio.sleep_forever()
        raise AssertionError


class _Suite(StoreTests):
    """The suite, called by hand; a second client of these stores is the store itself."""

    __test__ = False

    def open_again(self, store: Store) -> Store:
        return store


BROKEN = [
    (Overwrites, "put_if_absent_writes_once", "one winner"),
    (LooksThenWrites, "put_if_absent_has_one_winner", "one winner"),
    (RefusesButWrites, "put_if_absent_writes_once", "winner's bytes"),
    (Unsorted, "list_is_in_byte_order_of_whole_keys", "listing"),
    (WalksDirectories, "list_is_in_byte_order_of_whole_keys", "listing"),
    (ListsFromTheStart, "list_gives_thousands_in_order_and_can_be_left_early", "listing"),
    (ListsLate, "writes_are_seen_at_once_by_another_client", "listing"),
    (ListsTheDeleted, "delete_is_idempotent", "read-after-delete|listing"),
    (ReadsStale, "put_replaces", "read-after-overwrite"),
    (IgnoresRanges, "into_caps_the_length", "range reads"),
    (NewMemory, "into_caps_the_length", "range reads"),
]


@pytest.mark.parametrize(("broken", "test", "guarantee"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
async def test_suite_and_probe_find_a_broken_store(broken: type[MemoryStore], test: str, guarantee: str) -> None:
    """Each fails its test of the suite, where the sound store passes; the probe names the missing guarantee."""
    await getattr(_Suite(), f"test_{test}")(MemoryStore())
    with pytest.raises(AssertionError):
        await getattr(_Suite(), f"test_{test}")(broken())
    with pytest.raises(StoreUnsupportedError, match=guarantee):
        await probe(broken())


async def test_suite_finds_torn_writes() -> None:
    """Which take a reader at the right moment: the probe, one careful process, cannot see them."""
    await _Suite().test_readers_see_old_or_new_but_never_a_mixture(MemoryStore())
    with pytest.raises(ExceptionGroup) as found:
        await _Suite().test_readers_see_old_or_new_but_never_a_mixture(Tears())
    assert found.group_contains(AssertionError)


async def test_probe_passes_on_that_a_store_is_not_writable() -> None:
    """The store's own error, which names the remedy, not a group of them."""
    with pytest.raises(StoreAccessError, match="read-only; choose another"):
        await probe(RefusesWrites())


async def test_probe_gives_up_a_store_that_does_not_answer() -> None:
    """In the time it was given; and still deletes what it wrote."""
    store = NeverAnswers()
    with anyio.fail_after(5), pytest.raises(StoreError, match=r"did not answer .* within 0.05 s"):
        await probe(store, timeout_s=0.05)
    assert [key async for key in store.list()] == []


async def test_probe_refuses_a_timeout_that_is_none() -> None:
    with pytest.raises(ValueError, match="timeout_s must be > 0"):
        await probe(MemoryStore(), timeout_s=0)


async def test_probes_of_many_processes_do_not_disturb_each_other_and_cancelled_ones_clean_up() -> None:
    """64 replicas start at once; a cancelled probe leaves no key, wherever it was."""
    store = MemoryStore()
    async with anyio.create_task_group() as tasks:
        for _ in range(64):
            tasks.start_soon(probe, store)
    for steps in range(0, 60, 3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(probe, store)
            for _ in range(steps):
                await checkpoint()
            tasks.cancel_scope.cancel()
    assert [key async for key in store.list()] == []
