"""Writes: one winner also when replies get lost, and nothing left of what failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from aiodiloco import S3Store, StoreError, StoreUnavailableError
from aiodiloco.store.s3.http import DirectSession
from aiodiloco.testing.s3 import FaultyProxy
from aiodiloco.testing.s3.proxy import Fault, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.testing.s3.proxy import Decide, Request

pytestmark = pytest.mark.usefixtures("quick_retries")

MIB = 1024 * 1024
BIG = bytes(range(256)) * (11 * 4096)  # 11 MiB: three parts of 5 MiB


@pytest.fixture
async def proxy(moto: str) -> AsyncIterator[FaultyProxy]:
    async with FaultyProxy(moto) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy: FaultyProxy, bucket: str) -> AsyncIterator[S3Store]:
    async with S3Store(bucket, "p", endpoint_url=proxy.url, max_put_bytes=5 * MIB) as store:
        proxy.requests.clear()
        yield store


def once(*faults: Fault | Reply | None, method: str = "PUT", contains: str = "") -> Decide:
    """Return what happens to the first requests of that method."""
    left = list(faults)

    def decide(request: Request) -> Fault | Reply | None:
        return left.pop(0) if left and request.method == method and contains in request.target else None

    return decide


def sent(proxy: FaultyProxy) -> list[str]:
    return [request.method for request in proxy.requests]


@pytest.mark.parametrize("data", [b"", b"x", bytes(MIB)], ids=len)
async def test_a_creation_whose_reply_was_lost_is_ours(store: S3Store, proxy: FaultyProxy, data: bytes) -> None:
    """The repetition is told that the object exists; the mark on it says by whom."""
    proxy.decide = once(Fault.LOSE_REPLY)
    assert await store.put_if_absent("object", data) is True
    assert sent(proxy) == ["PUT", "PUT", "HEAD"]
    assert bytes(await store.get("object")) == data


async def test_a_creation_that_was_repeated_and_lost_is_not_ours(store: S3Store, proxy: FaultyProxy) -> None:
    """Though the winner wrote the same bytes."""
    assert await store.put_if_absent("object", b"same bytes") is True
    proxy.decide = once(Fault.LOSE_REPLY)
    assert await store.put_if_absent("object", b"same bytes") is False
    await store.put("plain", b"same bytes")
    proxy.decide = once(Fault.CLOSE)
    assert await store.put_if_absent("plain", b"same bytes") is False


async def test_a_creation_that_was_sent_once_and_lost_costs_no_second_request(
    store: S3Store, proxy: FaultyProxy
) -> None:
    await store.put("object", b"")
    proxy.requests.clear()
    assert await store.put_if_absent("object", b"x") is False
    assert sent(proxy) == ["PUT"]


async def test_a_conflict_with_another_writer_is_tried_again(store: S3Store, proxy: FaultyProxy) -> None:
    """409 says neither that it was written nor that it exists."""
    conflict = Reply(409, "ConditionalRequestConflict", "Please retry.")
    proxy.decide = once(conflict, conflict)
    assert await store.put_if_absent("object", b"x") is True
    proxy.decide = once(conflict)
    assert await store.put_if_absent("object", b"y") is False
    assert bytes(await store.get("object")) == b"x"


async def test_a_conflict_after_a_lost_reply_is_still_ours(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.decide = once(Fault.LOSE_REPLY, Reply(409, "ConditionalRequestConflict"))
    assert await store.put_if_absent("object", b"x") is True


async def test_conflicts_without_end_are_an_error(
    store: S3Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.01)
    proxy.decide = lambda _: Reply(409, "ConditionalRequestConflict")
    with pytest.raises(StoreError, match=r"cannot write 'object' in s3://.*others write and delete it all the time"):
        await store.put_if_absent("object", b"x")
    assert len(proxy.requests) == 10


async def test_an_object_deleted_before_its_owner_is_known_is_created_again(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.decide = once(Fault.CLOSE, Reply(412, "PreconditionFailed"))
    assert await store.put_if_absent("object", b"x") is True
    assert sent(proxy) == ["PUT", "PUT", "HEAD", "PUT"]


async def test_many_creations_with_lost_replies_have_one_winner_each(store: S3Store, proxy: FaultyProxy) -> None:
    """Every third reply is lost; eight writers of the same bytes."""
    proxy.decide = lambda request: Fault.LOSE_REPLY if request.method == "PUT" and request.number % 3 == 0 else None
    for round_ in range(4):
        won: list[bool] = []

        async def race(key: str = f"{round_}", won: list[bool] = won) -> None:
            won.append(await store.put_if_absent(key, b"same bytes"))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(race)
        assert sorted(won) == [False] * 7 + [True]


async def test_big_objects_are_written_in_parts(store: S3Store, proxy: FaultyProxy) -> None:
    await store.put("object", BIG)
    assert sorted(sent(proxy)) == ["POST", "POST", "PUT", "PUT", "PUT"]
    assert await store.get("object") == BIG, "the object differs"
    assert await store.put_if_absent("object", BIG) is False
    assert await store.put_if_absent("new", BIG) is True
    assert await store.get("new") == BIG, "the object differs"
    proxy.requests.clear()
    await store.put("small", BIG[: 5 * MIB])
    assert sent(proxy) == ["PUT"]


@pytest.mark.parametrize("checksums", [False, True])
async def test_parts_lost_replies_and_checksums(proxy: FaultyProxy, bucket: str, checksums: bool) -> None:
    """Of a part, and of the last request, after which the upload is unknown to the server."""
    async with S3Store(bucket, endpoint_url=proxy.url, max_put_bytes=5 * MIB, checksums=checksums) as store:
        for method, marker in (("PUT", "partNumber"), ("POST", "uploadId")):
            for key, call in (("replaced", store.put), ("created", store.put_if_absent)):
                proxy.decide = once(Fault.LOSE_REPLY, method=method, contains=marker)
                before = len(proxy.requests)
                assert await call(key, BIG) in (None, True)
                assert [marker in request.target for request in proxy.requests[before:]].count(True) > 1
                assert await store.get(key) == BIG, "the object differs"
                await store.delete(key)


async def test_an_upload_unknown_to_the_server_was_completed_if_the_object_is_ours(
    store: S3Store, proxy: FaultyProxy
) -> None:
    """So Amazon and others answer when a completion is repeated; moto does not mind."""
    unknown = Reply(404, "NoSuchUpload")
    for key, call in (("replaced", store.put), ("created", store.put_if_absent)):
        proxy.decide = once(Fault.LOSE_REPLY, unknown, method="POST", contains="uploadId")
        assert await call(key, BIG) in (None, True)
        assert await store.get(key) == BIG, "the object differs"
        proxy.decide = once(unknown, method="POST", contains="uploadId")
        with pytest.raises(StoreError, match="NoSuchUpload"):
            await call(f"never-{key}", BIG)


async def test_no_parts_are_left_of_an_upload_that_failed(store: S3Store, proxy: FaultyProxy, moto: str) -> None:
    proxy.decide = lambda request: Reply(403, "AccessDenied") if "partNumber=2" in request.target else None
    with pytest.raises(StoreError, match=r"cannot write 'object'"):
        await store.put("object", BIG)
    assert await uploads(moto, store) == []


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_no_parts_are_left_of_an_upload_that_was_cancelled(
    store: S3Store, proxy: FaultyProxy, moto: str, how: str
) -> None:
    """While its second part, or its completion, is under way."""
    for marker in ("partNumber=2", "uploadId"):
        stuck = anyio.Event()

        def decide(request: Request, stuck: anyio.Event = stuck, marker: str = marker) -> Fault | None:
            method = "PUT" if "part" in marker else "POST"
            if request.method == method and marker in request.target:
                stuck.set()
                return Fault.HANG
            return None

        proxy.decide = decide
        if how == "task":
            task = asyncio.ensure_future(store.put("object", BIG))
            await stuck.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.put, "object", BIG)
                await stuck.wait()
                tasks.cancel_scope.cancel()
        assert await uploads(moto, store) == []


async def test_an_upload_that_cannot_begin_does_not_hold_a_cancelled_caller(
    store: S3Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits a little for the answer, to know what to abort, and no longer: the server may be down."""
    monkeypatch.setattr("aiodiloco.store.s3.multipart._ANSWER_S", 0.2)
    stuck = anyio.Event()

    def decide(request: Request) -> Fault | None:
        if request.method != "POST":
            return None
        stuck.set()
        return Fault.HANG

    proxy.decide = decide
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.put, "object", BIG)
            await stuck.wait()
            tasks.cancel_scope.cancel()


async def test_an_upload_cancelled_while_it_began_is_aborted(store: S3Store, proxy: FaultyProxy, moto: str) -> None:
    async with anyio.create_task_group() as tasks:

        def decide(request: Request) -> None:
            if request.method == "POST":
                tasks.cancel_scope.cancel()

        proxy.decide = decide
        tasks.start_soon(store.put, "object", BIG)
    assert sent(proxy) == ["POST", "DELETE"]
    assert await uploads(moto, store) == []


async def uploads(moto: str, store: S3Store) -> list[str]:
    """Return the uploads in progress."""
    from aiobotocore.session import AioSession

    async with AioSession().create_client("s3", endpoint_url=moto, region_name="us-east-1") as client:
        reply = await client.list_multipart_uploads(Bucket=store.uri.split("/")[2])
        return [upload["Key"] for upload in reply.get("Uploads", [])]


@pytest.mark.parametrize(
    ("http_session", "says"), [(DirectSession, "no answer in time"), (AIOHTTPSession, "nothing moved for 2 s")]
)
async def test_a_server_that_stops_reading_is_given_up(
    proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch, http_session: type, says: str
) -> None:
    """Also with the stock session, whose own timeouts begin only when all is sent."""
    monkeypatch.setattr("aiodiloco.store.s3.connection.MAX_PAUSE_S", 0.0)
    options = {"timeout_s": 1.0, "max_attempts": 1, "concurrency": 1, "http_session": http_session}
    async with S3Store(bucket, endpoint_url=proxy.url, **options) as store:
        proxy.decide = once(Fault.STOP_READING)
        with anyio.fail_after(20), pytest.raises(StoreUnavailableError, match=says):
            await store.put("object", bytes(64 * MIB))
        await store.put("object", b"the connection pool still works")
