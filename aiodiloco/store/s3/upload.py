"""Writing objects whole."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.store.s3.failures import code_of, status_of
from aiodiloco.store.s3.multipart import NONCE, owner_of, part_size, put_in_parts
from aiodiloco.store.s3.payload import Payload, checksum_of

if TYPE_CHECKING:
    from aiodiloco.store.s3.connection import Connection

__all__ = ["create", "put"]

_MAX_CONFLICTS = 10


async def put(connection: Connection, key: str, view: memoryview) -> None:
    """Write an object, replacing any there was."""
    if view.nbytes > connection.max_put_bytes:
        part_bytes = part_size(view.nbytes, connection.max_put_bytes)
        await put_in_parts(connection, key, view, part_bytes, nonce=secrets.token_hex(16))
    else:
        await _put_once(connection, key, Payload(view))


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
            await _create_once(connection, key, payload, nonce)
        except ClientError as exc:
            if status_of(exc) == 412:
                owner = await owner_of(connection, key) if payload.num_sends > 1 else "another"
                if owner is not None:
                    return owner == nonce
            elif code_of(exc) != "ConditionalRequestConflict":
                raise
        else:
            return True
        await anyio.sleep(random.random() * min(0.05 * 2**conflict, 2))  # noqa: S311 - spreads load, guards nothing
    raise StoreError(f"cannot write {key!r} in {connection.location.uri}: others write and delete it all the time")


async def _create_once(connection: Connection, key: str, payload: Payload, nonce: str) -> None:
    size = payload.view.nbytes
    if size > connection.max_put_bytes:
        part_bytes = part_size(size, connection.max_put_bytes)
        await put_in_parts(connection, key, payload.view, part_bytes, nonce=nonce, IfNoneMatch="*")
    else:
        await _put_once(connection, key, payload, IfNoneMatch="*", Metadata={NONCE: nonce})


async def _put_once(connection: Connection, key: str, payload: Payload, **conditions: object) -> None:
    checksum = await checksum_of(payload.view) if connection.location.checksums else {}
    async with connection.slot() as slot:
        payload.on_slice = slot.moved
        await connection.objects.put_object(
            **connection.target(key), Body=payload, ContentLength=payload.view.nbytes, **checksum, **conditions
        )
