"""Every built-in store keeps the contract."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from aiodiloco.store import FileStore, MemoryStore, Store, open_store
from aiodiloco.testing import StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestMemoryStore(StoreTests):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with MemoryStore(uuid.uuid4().hex) as store:
            yield store


class TestMemoryStoreBelowAPrefix(StoreTests):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with MemoryStore(uuid.uuid4().hex, "runs/a") as store:
            async with open_store(store.uri.removesuffix("/a")) as above:
                await above.put("a0/of-a-neighbour", b"")
            yield store


class TestFileStore(StoreTests):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        with blockbuster_ctx("aiodiloco"):  # file work on the event loop raises
            async with FileStore(tmp_path / "a store, 100%") as store:
                yield store
