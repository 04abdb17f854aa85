"""Writing an object that is too big for one request."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.s3.failures import code_of
from aiodiloco.store.s3.payload import Payload, checksum_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiodiloco.store.s3.connection import Connection

__all__ = ["MAX_PUT_BYTES", "MIN_PUT_BYTES", "NONCE", "owner_of", "part_size", "put_in_parts"]

MAX_PUT_BYTES = 5 * 1024**3
MIN_PUT_BYTES = 5 * 1024**2
NONCE = "aiodiloco-nonce"
_PART_BYTES = 64 * 1024**2
_MAX_PARTS = 10_000
_NUM_AT_ONCE = 4
_ANSWER_S = 10.0
_ABORT_S = 10.0


def part_size(size: int, limit: int) -> int:
    """Return the bytes of each part, but the last, of an object of `size` bytes; at most `limit`, the single PUT's."""
    return min(limit, max(_PART_BYTES, -(-size // _MAX_PARTS)))


async def put_in_parts(
    connection: Connection, key: str, view: memoryview, part_bytes: int, *, nonce: str, **conditions: object
) -> None:
    """Write an object part by part; nothing is seen of it before the last, and nothing is left of it on failure.

    Parts of an upload that was neither completed nor aborted stay, and are billed: so it is aborted also when the
    caller is cancelled. Only a killed process leaves them, for which a bucket needs a lifecycle rule.
    """
    crc = connection.location.checksums
    begin = {"Metadata": {NONCE: nonce}} | ({"ChecksumAlgorithm": "CRC32"} if crc else {})
    async with connection.slot():
        with _shielded_for(_ANSWER_S):  # cancelled between the server's answer and ours, what would we abort?
            upload = await connection.client.create_multipart_upload(**connection.target(key), **begin)
    target = {**connection.target(key), "UploadId": upload["UploadId"]}
    try:
        starts = range(0, view.nbytes, part_bytes)
        put_part = partial(_put_part, connection, target, view, part_bytes)
        parts = await map_concurrently(put_part, starts, limit=_NUM_AT_ONCE)
        await _complete(connection, key, nonce, {**target, "MultipartUpload": {"Parts": parts}, **conditions})
    except BaseException:
        with anyio.move_on_after(_ABORT_S, shield=True):
            await _abort(connection, target)
        raise


async def owner_of(connection: Connection, key: str) -> str | None:
    """Return the mark of whoever created the object, "" if it has none, None if there is no object."""
    from botocore.exceptions import ClientError

    try:
        async with connection.slot():
            response = await connection.client.head_object(**connection.target(key))
    except ClientError as exc:
        if code_of(exc) == "404":
            return None
        raise
    return str(response.get("Metadata", {}).get(NONCE, ""))


@contextmanager
def _shielded_for(seconds: float) -> Iterator[None]:
    """Hold a cancel scope's cancellation off, but not for longer than `seconds`: a server that is down must not."""
    with anyio.CancelScope(shield=True) as scope:
        lapse = asyncio.get_running_loop().call_later(seconds, setattr, scope, "shield", False)
        try:
            yield
        finally:
            lapse.cancel()


async def _put_part(
    connection: Connection, target: Mapping[str, str], view: memoryview, part_bytes: int, start: int
) -> dict[str, Any]:
    payload = Payload(view[start : start + part_bytes])
    checksum = await checksum_of(payload.view) if connection.location.checksums else {}
    number = start // part_bytes + 1
    async with connection.slot() as slot:
        payload.on_slice = slot.moved
        reply = await connection.client.upload_part(
            **target, PartNumber=number, Body=payload, ContentLength=payload.view.nbytes, **checksum
        )
    return {"PartNumber": number, "ETag": reply["ETag"], **checksum}


async def _complete(connection: Connection, key: str, nonce: str, request: Mapping[str, object]) -> None:
    """Make the object of its parts."""
    from botocore.exceptions import ClientError

    try:
        async with connection.slot():
            await connection.client.complete_multipart_upload(**request)
    except ClientError as exc:
        # Completed already, by a request whose reply was lost?
        if code_of(exc) not in {"NoSuchUpload", "PreconditionFailed"} or await owner_of(connection, key) != nonce:
            raise


async def _abort(connection: Connection, target: Mapping[str, str]) -> None:
    """Delete the parts. What fails here must not hide why it was called."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        async with connection.slot():
            await connection.client.abort_multipart_upload(**target)
    except (BotoCoreError, ClientError, OSError):
        return
