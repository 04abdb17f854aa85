"""Reading a range of an object into one piece of memory, also when connections break on the way."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from aiodiloco.errors import StoreError, StoreUnavailableError, StoreUnsupportedError
from aiodiloco.store.pages import new_memory
from aiodiloco.store.s3.failures import code_of, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.store.s3.connection import Connection, Slot

__all__ = ["download"]

_READ_BYTES = 256 * 1024
_MAX_BREAKS = 5
_BREAKS_PER_BYTES = 8 * 1024 * 1024  # one break more is forgiven for each of these that came
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/")


class _Body(Protocol):
    """The part of aiobotocore's response bodies that is used here.

    `raw_stream` is the HTTP session's. If it has a coroutine `readinto(view) -> int`, 0 at the end, bytes are received
    by that, straight into the caller's memory.
    """

    @property
    def raw_stream(self) -> object: ...

    async def read(self, amt: int) -> bytes: ...

    def close(self) -> None: ...


class _BrokenError(Exception):
    """The bytes stopped coming, or became another object's."""


@dataclasses.dataclass
class _Reading:
    """What is wanted, and how far it came.

    Attributes:
        start: First byte of the object wanted.
        wanted: How many bytes at most; None means to the end.
        into: The caller's memory for it.
        target: Where the bytes go; None until the size is known.
        filled: How many have come.
        etag: The version of the object they are from.
    """

    start: int
    wanted: int | None
    into: memoryview | None
    target: memoryview | None = None
    filled: int = 0
    etag: str | None = None

    def range_header(self) -> dict[str, str]:
        """Return the Range of what is missing; of one byte where none is wanted, to see that the object is there."""
        first = self.start + self.filled
        if self.wanted is None:
            return {"Range": f"bytes={first}-"} if first else {}
        return {"Range": f"bytes={first}-{max(first, self.start + self.wanted - 1)}"}

    def restart(self) -> None:
        """Forget the bytes of a version that is gone: halves of two never mix."""
        self.filled, self.etag, self.target = 0, None, self.into


async def download(
    connection: Connection, key: str, start: int, length: int | None, into: memoryview | None
) -> memoryview:
    """Return bytes of an object, in `into` if given; see `Store.get`.

    A body that breaks off is read on from where it broke, if the object is still the same by its ETag, else from the
    start. Comparing the ETag of each reply is as safe as asking for it by If-Match, which some servers ignore and
    others (Ceph) refuse in the quotes it comes in.
    """
    if into is not None:
        into = into.cast("B")
        length = into.nbytes if length is None else min(length, into.nbytes)
    reading = _Reading(start, length, into, into)
    breaks = 0
    while True:
        try:
            return await _read_on(connection, key, reading)
        except _BrokenError as exc:
            breaks += 1
            if breaks > _MAX_BREAKS + reading.filled // _BREAKS_PER_BYTES:
                raise StoreUnavailableError(
                    f"cannot read {key!r} in {connection.location.uri}: it broke off {breaks} times, the last after "
                    f"{reading.filled} bytes ({exc})"
                ) from exc
        await anyio.sleep(random.random() * min(0.05 * 2**breaks, 5))  # noqa: S311 - spreads load, guards nothing


async def _read_on(connection: Connection, key: str, reading: _Reading) -> memoryview:
    """Ask for what is missing and return all once it came."""
    import aiohttp
    from botocore.exceptions import ClientError, ResponseStreamingError

    async with connection.slot() as slot:
        try:
            response = await connection.objects.get_object(**connection.target(key), **reading.range_header())
        except ClientError as exc:
            if status_of(exc) != 416 and code_of(exc) != "InvalidRange":
                raise
            if reading.filled:  # there was more of it a moment ago
                reading.restart()
                raise _BrokenError("the object was replaced by a shorter one") from exc
            return memoryview(b"") if reading.target is None else reading.target[:0]
        except (aiohttp.ClientError, ResponseStreamingError) as exc:  # an error reply that broke off: not retried yet
            raise _BrokenError(str(exc)) from exc
        body = response["Body"]
        try:
            return await _take(body, response, reading, slot, validated=connection.location.checksums)
        except _body_failures() as exc:
            if connection.location.checksums:  # only a whole body can be checked
                reading.restart()
            raise _BrokenError(f"{type(exc).__name__}: {exc}") from exc
        finally:
            body.close()  # gives the connection back if the body was read to its end, else closes it


async def _take(
    body: _Body, response: Mapping[str, Any], reading: _Reading, slot: Slot, *, validated: bool
) -> memoryview:
    if reading.filled and (reading.etag is None or response.get("ETag") != reading.etag):
        reading.restart()
        raise _BrokenError("the object was replaced meanwhile")
    reading.etag = response.get("ETag")
    size = _size_of(response, reading)
    if reading.target is None:
        reading.target = _new_memory(size)
    end = reading.filled + size
    receive = None if validated else getattr(body.raw_stream, "readinto", None)
    while reading.filled < end:
        part = reading.target[reading.filled : end]
        if receive is not None:
            num = await receive(part)
        else:
            piece = await body.read(min(_READ_BYTES, len(part)))
            num = len(piece)
            part[:num] = piece
        if not num:
            raise _BrokenError(f"{end - reading.filled} bytes fewer than announced")
        reading.filled += num
        slot.moved()
    if validated and size and await body.read(1):  # compares the checksum at the end of the body
        raise _BrokenError("more bytes than announced")
    return reading.target[: reading.filled]


def _size_of(response: Mapping[str, Any], reading: _Reading) -> int:
    """Return how many bytes of the reply to take, or raise StoreUnsupportedError if it is not what was asked for."""
    size = response.get("ContentLength")
    if size is None:
        raise StoreUnsupportedError("the server does not say how long an object is: use another, or no proxy before it")
    told = _CONTENT_RANGE.match(response.get("ContentRange") or f"bytes 0-{size - 1}/")
    first = reading.start + reading.filled
    missing = None if reading.wanted is None else reading.wanted - reading.filled
    if told is None or int(told[1]) != first or (missing is not None and size > max(missing, 1)):
        raise StoreUnsupportedError(
            f"the server ignores ranges: asked for {missing} bytes from {first}, it sent others"
        )
    if int(told[2]) - first + 1 != size:
        raise _BrokenError(f"announced as {told[0]} and as {size} bytes")
    return int(size) if missing is None else min(int(size), missing)


def _new_memory(size: int) -> memoryview:
    """Return writable memory. A large piece is not touched before its bytes come, however much was announced."""
    try:
        return new_memory(size)
    except (OSError, OverflowError, ValueError) as exc:
        raise StoreError(f"the server announces an object of {size} bytes, for which there is no memory") from exc


@functools.cache
def _body_failures() -> tuple[type[Exception], ...]:
    import aiohttp
    from botocore import exceptions as boto

    return (aiohttp.ClientError, boto.BotoCoreError, OSError)
