"""The S3 store keeps the contract, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from aiodiloco.store import Store, join_uri, open_store
from aiodiloco.testing import StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestS3Store(StoreTests):
    num_many = 600  # a page has 250 keys

    @pytest.fixture
    async def store(self, uri: str) -> AsyncIterator[Store]:
        with blockbuster_ctx("aiodiloco"):
            async with open_store(join_uri(uri, "runs/r1")) as store:
                yield store
