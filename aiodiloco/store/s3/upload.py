"""Writing objects whole."""

from __future__ import annotations

import base64
import random
import secrets
import zlib
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from aiodiloco.errors import StoreError
from aiodiloco.store.s3.failures import code_of, status_of
from aiodiloco.store.s3.payload import Payload

if TYPE_CHECKING:
    from aiodiloco.store.s3.connection import Connection

__all__ = ["create", "put"]

_NONCE = "aiodiloco-nonce"
_MAX_CONFLICTS = 10


async def put(connection: Connection, key: str, payload: Payload, **conditions: object) -> None:
    """Write an object in one request; `conditions` are further parameters of PutObject."""
    checksum = await _checksum(payload.view) if connection.location.checksums else {}
    async with connection.slot() as slot:
        payload.on_slice = slot.moved
        await connection.objects.put_object(
            **connection.target(key), Body=payload, ContentLength=payload.view.nbytes, **checksum, **conditions
        )


async def create(connection: Connection, key: str, view: memoryview) -> bool:
    """Write an object unless the key exists; return True if this call wrote it.

    "It exists" can be this call's own doing: a PUT that was applied, whose reply was lost, and which was sent again.
    So each call marks its object, and where more than one sending may have reached the server, the mark decides.
    """
    from botocore.exceptions import ClientError

    nonce = secrets.token_hex(16)
    payload = Payload(view)
    for conflict in range(_MAX_CONFLICTS):
        try:
            await put(connection, key, payload, IfNoneMatch="*", Metadata={_NONCE: nonce})
        except ClientError as exc:
            if status_of(exc) == 412:
                owner = await _owner(connection, key) if payload.num_sends > 1 else "another"
                if owner is not None:
                    return owner == nonce
            elif code_of(exc) != "ConditionalRequestConflict":
                raise
        else:
            return True
        await anyio.sleep(random.random() * min(0.05 * 2**conflict, 2))  # noqa: S311 - spreads load, guards nothing
    raise StoreError(f"cannot write {key!r} in {connection.location.uri}: others write and delete it all the time")


async def _owner(connection: Connection, key: str) -> str | None:
    """Return the mark of whoever created the object, "" if it has none, None if there is no object any more."""
    from botocore.exceptions import ClientError

    try:
        async with connection.slot():
            response = await connection.client.head_object(**connection.target(key))
    except ClientError as exc:
        if status_of(exc) == 404:
            return None
        raise
    return str(response.get("Metadata", {}).get(_NONCE, ""))


async def _checksum(view: memoryview) -> dict[str, str]:
    crc = await to_thread.run_sync(zlib.crc32, view)
    return {"ChecksumCRC32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
