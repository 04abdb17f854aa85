"""Reads survive what networks do to them, and never mix two versions of an object."""

from __future__ import annotations

import base64
import urllib.request
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from aiodiloco import KeyNotFoundError, S3Store, StoreError, StoreUnsupportedError
from aiodiloco.store.s3 import S3Location
from aiodiloco.store.s3.http import DirectSession
from aiodiloco.testing.s3 import FaultyProxy
from aiodiloco.testing.s3.proxy import Fault, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.testing.s3.proxy import Request

pytestmark = pytest.mark.usefixtures("quick_retries")

DATA = bytes(range(256)) * 4096 + b"tail"


@pytest.fixture
async def proxy(moto: str) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(moto) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: FaultyProxy, bucket: str) -> AsyncIterator[S3Store]:
    async with S3Store(bucket, "p", endpoint_url=proxy.url, max_attempts=3, concurrency=1) as store:
        await store.put("object", DATA)
        proxy.requests.clear()
        yield store


@asynccontextmanager
async def impatient(store: S3Store) -> AsyncIterator[S3Store]:
    """Open the same store, waiting a second for each answer."""
    location = S3Location.parse(store.uri)
    async with S3Store(
        location.bucket, location.prefix, endpoint_url=location.endpoint_url, timeout_s=1.0, max_attempts=2
    ) as client:
        yield client


def break_first(num: int, fault: Fault) -> object:
    """Return what breaks the next `num` reads."""
    left = [fault] * num
    return lambda request: left.pop() if left and request.method == "GET" and "/object" in request.target else None


def ranges(proxy: FaultyProxy) -> list[str]:
    return [
        request.headers.get("range", "")
        for request in proxy.requests
        if request.method == "GET" and "/object" in request.target
    ]


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.RESET, Fault.STALL])
async def test_a_body_that_breaks_off_is_read_on_from_there(store: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    """Twice; only what is missing is asked for again (a reset may cost more: it drops what was on the way)."""
    proxy.decide = break_first(2, fault)
    buffer = bytearray(len(DATA))
    if fault is Fault.STALL:  # only here is the time a matter: elsewhere a slow machine must not count as stuck
        async with impatient(store) as client:
            await client.get("object", into=memoryview(buffer))
    else:
        await store.get("object", into=memoryview(buffer))
    assert buffer == DATA, "the object differs"
    first, second, third, *_ = ranges(proxy)
    assert first == f"bytes=0-{len(DATA) - 1}"
    if fault is Fault.TRUNCATE:
        assert second == f"bytes={len(DATA) // 2}-{len(DATA) - 1}"
        assert third == f"bytes={len(DATA) // 2 + (len(DATA) - len(DATA) // 2) // 2}-{len(DATA) - 1}"


@pytest.mark.parametrize(("start", "length"), [(0, None), (5, None), (5, 900_000)])
async def test_ranges_into_new_memory_are_read_on_too(
    store: S3Store, proxy: FaultyProxy, start: int, length: int | None
) -> None:
    proxy.decide = break_first(1, Fault.TRUNCATE)
    data = await store.get("object", start=start, length=length)
    assert data == DATA[start:][:length], "the range differs"
    assert len(ranges(proxy)) == 2


@pytest.mark.parametrize("new", [bytes(len(DATA)), b"short", DATA * 2], ids=["same size", "shorter", "longer"])
@pytest.mark.parametrize("own", [False, True], ids=["new memory", "into"])
async def test_an_object_replaced_between_two_parts_is_read_anew(
    store: S3Store, proxy: FaultyProxy, new: bytes, own: bool
) -> None:
    """Also when it is shorter than what had come, or longer."""
    faults = [Fault.TRUNCATE]

    def decide(request: Request) -> Fault | None:
        if faults:
            return faults.pop()
        if len(proxy.requests) == 2:
            replace(proxy.upstream, request, new)
        return None

    proxy.decide = decide
    into = memoryview(bytearray(2 * len(DATA))) if own else None
    assert await store.get("object", into=into) == new, "halves of two versions"
    assert len(proxy.requests) == 3


def replace(upstream: str, request: Request, data: bytes) -> None:
    """Put another object where one is just being read, behind the proxy's back and at once."""
    # As a form, moto would not take it for the object; a signature it wants to see but does not check.
    headers = {"Content-Type": "application/octet-stream", "Authorization": request.headers["authorization"]}
    put = urllib.request.Request(upstream + request.target.partition("?")[0], data, headers, method="PUT")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(put, timeout=30):
        pass


async def test_a_body_that_always_breaks_off_is_an_error(store: S3Store, proxy: FaultyProxy) -> None:
    """After a bounded number of tries, with the progress made."""
    proxy.decide = lambda request: Fault.TRUNCATE if request.method == "GET" else None
    with pytest.raises(
        StoreError, match=r"cannot read 'object' in s3://.* broke off 6 times, the last after \d+ bytes"
    ):
        await store.get("object")
    assert len(ranges(proxy)) >= 6
    proxy.decide = lambda _: None
    assert len(await store.get("object")) == len(DATA)


@pytest.mark.parametrize("http_session", [DirectSession, AIOHTTPSession])
async def test_an_error_reply_that_breaks_off_is_asked_for_again(
    proxy: FaultyProxy, bucket: str, http_session: type
) -> None:
    """botocore retries no such reply to GetObject."""
    async with S3Store(bucket, endpoint_url=proxy.url, http_session=http_session) as store:
        proxy.decide = break_first(3, Fault.TRUNCATE)
        with pytest.raises(KeyNotFoundError, match="object-that-is-not"):
            await store.get("object-that-is-not")
        assert len(ranges(proxy)) >= 4


async def test_busy_answers_are_retried_and_a_storm_is_an_error(store: S3Store, proxy: FaultyProxy) -> None:
    """30 % of requests are nothing; all of them are an error that says so."""
    proxy.decide = lambda request: Reply(503, "SlowDown") if request.number % 10 in {1, 4, 7} else None
    for index in range(7):
        await store.put(f"{index}", b"x")
        assert bytes(await store.get(f"{index}")) == b"x"
    proxy.decide = lambda _: Reply(503, "SlowDown", "Please reduce your request rate.")
    with pytest.raises(StoreError, match=r"overloaded or out of order, 3 times in a row \(SlowDown: Please reduce"):
        await store.get("object")


@pytest.mark.parametrize("method", ["get", "put"])
async def test_a_server_that_does_not_answer_is_given_up_in_time(
    store: S3Store, proxy: FaultyProxy, method: str
) -> None:
    async with impatient(store) as client:
        proxy.decide = lambda _: Fault.HANG
        call = client.get("object") if method == "get" else client.put("object", b"x")
        with anyio.fail_after(30), pytest.raises(StoreError, match=r"no answer in time|broke off"):
            await call


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(200, body=b"0123456789"), StoreUnsupportedError, "ignores ranges: asked for 4 bytes from 3"),
        (
            Reply(206, headers=(("Content-Range", "bytes 0-3/10"),), body=b"0123"),
            StoreUnsupportedError,
            "ignores ranges",
        ),
        (
            Reply(206, headers=(("Content-Range", "bytes 3-6/10"),), body=b"34"),
            StoreError,
            "broke off 6 times",
        ),
    ],
    ids=["whole", "other range", "other length"],
)
async def test_a_reply_that_is_not_what_was_asked_for_is_refused(
    store: S3Store, proxy: FaultyProxy, reply: Reply, error: type[Exception], says: str
) -> None:
    proxy.decide = lambda _: reply
    with pytest.raises(error, match=says):
        await store.get("object", start=3, length=4)


async def test_an_announced_size_beyond_all_memory_is_an_error_before_anything_is_allocated(
    store: S3Store, proxy: FaultyProxy
) -> None:
    proxy.decide = lambda _: Reply(200, announced=2**55)
    with pytest.raises(StoreError, match="36028797018963968 bytes, for which there is no memory"):
        await store.get("object")


async def test_checksums_are_sent_and_checked(moto: str, bucket: str) -> None:
    """With checksums=true a flipped bit is found, and the object read again."""
    crc = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()
    async with FaultyProxy(moto) as proxy, S3Store(bucket, endpoint_url=proxy.url, checksums=True) as store:
        await store.put("object", DATA)
        assert proxy.requests[-1].headers["x-amz-checksum-crc32"] == crc
        flipped = bytearray(DATA)
        flipped[100_000] ^= 1
        headers = (("x-amz-checksum-crc32", crc), ("ETag", '"etag"'))
        replies = [Reply(200, headers=headers, body=bytes(flipped)), Reply(200, headers=headers, body=DATA)]
        proxy.decide = lambda _: replies.pop(0)
        assert await store.get("object") == DATA, "the object differs"
        assert replies == []
