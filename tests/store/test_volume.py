"""A Modal Volume keeps the contract of a store, for clients outside of containers."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import anyio
import modal
import pytest

from aiodiloco.store.volume.store import VolumeStore
from aiodiloco.testing import StoreTests
from aiodiloco.testing.modal.fixture import loopback_modal, loopback_modal_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.store import Store
    from aiodiloco.testing.modal import LoopbackModal

__all__ = ["loopback_modal", "loopback_modal_server"]


@pytest.fixture(scope="module")
def client(loopback_modal_server: LoopbackModal) -> modal.Client:
    return anyio.run(loopback_modal_server.client)


async def new_volume(client: modal.Client, version: int) -> str:
    name = f"store-{uuid.uuid4().hex}"
    await modal.Volume.objects.create.aio(name, version=version, client=client)
    return name


class TestVolumeStore(StoreTests):
    @pytest.fixture
    async def store(self, client: modal.Client) -> AsyncIterator[Store]:
        self.client, self.name, self.prefix = client, await new_volume(client, 1), ""
        async with self.open_again() as store:
            yield store

    def open_again(self, _: Store | None = None) -> Store:
        return VolumeStore(self.name, self.prefix, client=self.client)


class TestVolumeStoreOfVersion2BelowAPrefix(StoreTests):
    @pytest.fixture
    async def store(self, client: modal.Client) -> AsyncIterator[Store]:
        self.client, self.name, self.prefix = client, await new_volume(client, 2), "runs/a"
        async with VolumeStore(self.name, "runs", client=client) as above:
            await above.put("a0/of-a-neighbour", b"")
        async with self.open_again() as store:
            yield store

    def open_again(self, _: Store | None = None) -> Store:
        return VolumeStore(self.name, self.prefix, client=self.client)
