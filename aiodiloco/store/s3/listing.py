"""The keys below a prefix, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.store.s3.connection import Connection

__all__ = ["list_keys"]

_PAGE_KEYS = 250  # parsing a page of 1000 would hold the event loop for some 50 ms


async def list_keys(
    connection: Connection, prefix: str, start_after: str, *, page_keys: int = _PAGE_KEYS
) -> AsyncIterator[list[str]]:
    """Iterate over pages of the keys that start with `prefix` and sort after `start_after`, in byte order."""
    root = connection.key("")
    after = {"StartAfter": root + start_after} if start_after else {}
    while True:
        async with connection.slot():
            page = await connection.client.list_objects_v2(
                Bucket=connection.location.bucket, Prefix=root + prefix, MaxKeys=page_keys, **after
            )
        yield [item["Key"].removeprefix(root) for item in page.get("Contents", ())]
        if not page.get("IsTruncated"):
            return
        after = {"ContinuationToken": page["NextContinuationToken"]}
