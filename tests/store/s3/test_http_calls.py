"""Puts and gets that bypass the client: they look like the client's, and give way to it when anything is wrong."""

import functools
import os
from contextlib import asynccontextmanager

import pytest
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from aiodiloco.store.s3.http import DirectCalls, DirectSession
from aiodiloco.store.s3.payload import Payload
from aiodiloco.testing.s3 import rclone_server
from tests.store.s3.raw_server import raw_server

KEY = "rounds/0=a+b@c_d/1-2.3"
LISTING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


@functools.cache
def _session():
    """One for all tests: it spends half a second on reading what S3 is."""
    return get_session()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.0)


class Calls:
    """Direct calls, their client, and the names of the operations that the client itself carried out."""

    def __init__(self, client):
        self.client = client
        self.direct = DirectCalls(client)
        self.by_client = []
        client.meta.events.register("before-call.s3", lambda model, **_: self.by_client.append(model.name))

    async def learn(self, bucket="bucket"):
        await self.client.list_objects_v2(Bucket=bucket)
        self.by_client.clear()

    async def put(self, data=b"data", bucket="bucket", **params):
        payload = Payload(memoryview(data))
        await self.direct.put_object(Bucket=bucket, Key=KEY, Body=payload, ContentLength=len(data), **params)
        return payload.num_sends

    async def get(self, bucket="bucket", **params):
        response = await self.direct.get_object(Bucket=bucket, Key=KEY, **params)
        return response, await response["Body"].read()


@asynccontextmanager
async def calls(url=None, *, http_session_cls=DirectSession, addressing="path", region="us-east-1"):
    config = AioConfig(
        http_session_cls=http_session_cls,
        parameter_validation=False,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 2},
        s3={"addressing_style": addressing, "payload_signing_enabled": False},
    )
    async with _session().create_client("s3", endpoint_url=url, region_name=region, config=config) as client:
        yield Calls(client)


def reply(status, body=b"", *headers):
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Cut(bytes):
    """A reply after which the connection is closed."""


def error(status, code, message="told &amp; tried"):
    return reply(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


@asynccontextmanager
async def scripted(*replies, **options):
    """Direct calls that have learned, on a server that gives `replies`, one each; yields them and the requests seen."""
    seen, left = [], list(replies)

    async def script(peer):
        while True:
            head, body = await peer.read_request()
            if "list-type=2" in head:
                await peer.stream.send(reply(200, LISTING))
                continue
            seen.append((head, body))
            answer = left.pop(0) if len(left) > 1 else left[0]
            await peer.stream.send(answer)
            if isinstance(answer, Cut):
                return

    async with raw_server(script) as server, calls(f"http://127.0.0.1:{server.port}", **options) as made:
        await made.learn()
        yield made, seen


DATA = reply(200, b"data")


async def test_a_server_that_checks_signatures_takes_them(tmp_path):
    (tmp_path / "bucket").mkdir()
    with rclone_server(tmp_path, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) as url:
        async with calls(url) as made:
            await made.learn()
            assert await made.put(b"some bytes", Metadata={"note": "1"}, IfNoneMatch="*") == 1
            response, body = await made.get()
            assert (response["ContentLength"], body) == (10, b"some bytes")
            response, body = await made.get(Range="bytes=5-8")
            assert (response["ContentRange"], body) == ("bytes 5-8/10", b"byte")
            assert made.by_client == []
            head = await made.client.head_object(Bucket="bucket", Key=KEY)
            assert head["Metadata"]["note"] == "1"
            assert head["ETag"] == response["ETag"]


@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/base"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
async def test_request_is_signed_and_addressed_as_the_clients_own(addressing, url, region):
    """Nothing listens here: the direct request fails, then the client makes its own, answered by a hook."""
    signed = []

    def answer(request, **_):
        return AioAWSResponse(request.url, 200, {}, _Listing())

    async with calls(url, addressing=addressing, region=region) as made:
        events = made.client.meta.events
        events.register("before-send.s3", answer)
        await made.learn()
        events.register_last("before-sign.s3.PutObject", lambda request, **_: signed.append(request))
        await made.put(Metadata={"b": "2", "a": "1"}, IfNoneMatch="*", ChecksumCRC32="AAAAAA==")
    direct, own = signed
    assert made.by_client == ["PutObject"]
    assert direct.url == own.url
    assert ("127.0.0.1" in own.url) == (url is not None)
    ours, theirs = _headers(direct), _headers(own)
    assert ours.keys() <= theirs.keys()
    # The client adds what says which attempt it is, and that the body comes in pieces.
    assert theirs.keys() - ours.keys() <= {"amz-sdk-invocation-id", "amz-sdk-request", "content-type", "expect"}
    scope = ours["authorization"].split(",")[0]
    assert scope == theirs["authorization"].split(",")[0]
    assert f"/{region}/s3/" in scope
    assert {name: value for name, value in ours.items() if name[:2] == "x-" and name != "x-amz-date"} == {
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-meta-a": "1",
        "x-amz-meta-b": "2",
    }


def _headers(request):
    items = request.headers.items()
    return {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in items}


class _Listing:
    async def read(self):
        return LISTING


async def test_nothing_bypasses_the_client_before_it_has_listed():
    async def script(peer):
        await peer.answer(reply(200))
        await peer.answer(DATA)

    async with raw_server(script) as server, calls(f"http://127.0.0.1:{server.port}") as made:
        assert await made.put() == 1
        assert (await made.get())[1] == b"data"
        assert made.by_client == ["PutObject", "GetObject"]


async def test_nothing_bypasses_the_client_over_another_session():
    async with scripted(reply(200), http_session_cls=AIOHTTPSession) as (made, seen):
        assert await made.put() == 1
        assert made.by_client == ["PutObject"]
        assert len(seen) == 1


async def test_parameters_it_does_not_know_are_the_clients():
    async with scripted(reply(200)) as (made, seen):
        await made.put(ContentType="text/plain")
        await made.get(IfMatch="a")
        assert made.by_client == ["PutObject", "GetObject"]
        assert len(seen) == 2


@pytest.mark.parametrize(
    "failure",
    [
        Cut(b"HTTP/1.1 2"),
        Cut(b"garbage\r\n\r\n"),
        error(503, "SlowDown"),
        error(500, "InternalError"),
        error(400, "RequestTimeout"),
    ],
    ids=["cut", "garbage", "503", "500", "400"],
)
async def test_what_fails_in_passing_is_sent_again_by_the_client(failure):
    async with scripted(failure, reply(200)) as (made, seen):
        assert await made.put() == 2
        assert made.by_client == ["PutObject"]
        assert [body for _, body in seen] == [b"data", b"data"]
    async with scripted(failure, DATA) as (made, seen):
        assert (await made.get())[1] == b"data"
        assert made.by_client == ["GetObject"]
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (error(404, "NoSuchKey"), 404, "NoSuchKey"),
        (error(404, "NoSuchBucket"), 404, "NoSuchBucket"),
        (error(412, "PreconditionFailed"), 412, "PreconditionFailed"),
        (error(409, "ConditionalRequestConflict"), 409, "ConditionalRequestConflict"),
        (error(416, "InvalidRange"), 416, "InvalidRange"),
        (reply(404, b"<html>nginx"), 404, "404"),
    ],
)
async def test_final_answer_is_an_error_as_the_client_raises_it_after_one_request(raw, status, code):
    async with scripted(raw) as (made, seen):
        for call, operation in ((made.put, "PutObject"), (made.get, "GetObject")):
            with pytest.raises(ClientError) as caught:
                await call()
            assert caught.value.response["Error"]["Code"] == code
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
            assert caught.value.operation_name == operation
            assert isinstance(caught.value, made.client.exceptions.from_code(code))
            assert code == "404" or "told & tried" in str(caught.value)
        assert made.by_client == []
        assert len(seen) == 2


async def test_final_answer_that_breaks_off_is_asked_for_again():
    whole = error(404, "NoSuchKey")
    async with scripted(Cut(whole[:-5]), whole) as (made, seen):
        with pytest.raises(ClientError, match="NoSuchKey"):
            await made.get()
        assert (made.by_client, len(seen)) == (["GetObject"], 2)


async def test_refusal_goes_to_the_client_until_it_has_listed_again():
    async with scripted(error(403, "AccessDenied")) as (made, seen):
        with pytest.raises(ClientError, match="AccessDenied"):
            await made.get()
        assert (made.by_client, len(seen)) == (["GetObject"], 2)
        with pytest.raises(ClientError, match="AccessDenied"):
            await made.get()
        assert (made.by_client, len(seen)) == (["GetObject", "GetObject"], 3)
        await made.learn()
        with pytest.raises(ClientError, match="AccessDenied"):
            await made.get()
        assert len(seen) == 5
