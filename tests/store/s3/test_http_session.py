"""The session against a server that does everything wrong."""

import gc
import io
import os

import anyio
import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from aiodiloco.store.s3.http import DirectSession
from aiodiloco.store.s3.payload import Payload
from aiodiloco.testing.cancellation import cancel_at_every_step
from tests.store.s3.raw_server import OK, raw_server

MIB = 1024 * 1024


def request(method, url, body=None, *, stream=False, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return AWSPreparedRequest(method, url, headers, body, stream_output=stream)


def session(**kwargs):
    return DirectSession(**{"timeout": (10, 10), **kwargs})


async def get(http, url, method="GET", **kwargs):
    response = await http.send(request(method, url, **kwargs))
    return response.status_code, await response.content


async def read_into(response, view):
    filled = 0
    while filled < len(view) and (count := await response.raw.readinto(view[filled:])):
        filled += count
    return filled


def keep_answering(raw=OK):
    async def script(peer):
        while True:
            await peer.answer(raw)

    return script


def answer_once(raw):
    async def script(peer):
        await peer.answer(raw)

    return script


def answer_and_hold(raw):
    async def script(peer):
        await peer.answer(raw)
        await peer.wait_closed()

    return script


# What is sent and received


async def test_request_carries_method_target_headers_and_body():
    seen = []

    async def script(peer):
        seen.append(await peer.answer())

    async with raw_server(script) as server, session() as http:
        url = server.url + "?versionId=1"
        await http.send(request("PUT", url, Payload(memoryview(b"body")), x_amz_date="now", Authorization=b"signed"))
    head, body = seen[0]
    lines = head.split("\r\n")
    assert lines[0] == "PUT /bucket/key?versionId=1 HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}" in lines
    assert {"x-amz-date: now", "Authorization: signed", "Content-Length: 4", "Accept-Encoding: identity"} <= set(lines)
    assert body == b"body"


@pytest.mark.parametrize("body", [None, b"", b"x" * 10, bytearray(b"y" * 10), "zä", Payload(memoryview(b"p"))])
async def test_bodies_of_each_kind_arrive(body):
    seen = []

    async def script(peer):
        seen.append((await peer.answer())[1])

    async with raw_server(script) as server, session() as http:
        assert (await http.send(request("PUT", server.url, body))).status_code == 200
    expected = b"" if body is None else body.encode() if isinstance(body, str) else getattr(body, "view", body)
    assert seen == [bytes(expected)]


async def test_large_body_goes_out_and_comes_back_whole():
    data = os.urandom(9 * MIB + 5)

    async def script(peer):
        while True:
            _, body = await peer.read_request()
            await peer.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            await peer.stream.send(body)

    moved = []
    payload = Payload(memoryview(data))
    payload.on_slice = lambda: moved.append(1)
    async with raw_server(script) as server, session() as http:
        for sends in (1, 2):
            response = await http.send(request("PUT", server.url, payload, stream=True))
            target = bytearray(len(data) + 10)
            assert await read_into(response, memoryview(target)) == len(data)
            assert target[: len(data)] == data
            assert payload.num_sends == sends
        assert server.num_connections == 1
    assert len(moved) > 2


async def test_readinto_returns_while_a_slow_body_is_under_way():
    async def script(peer):
        await peer.read_head()
        await peer.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MIB))
        await peer.stream.send(bytes(MIB))
        await peer.wait_closed()

    async with raw_server(script) as server, session(timeout=0.5) as http:
        response = await http.send(request("GET", server.url, stream=True))
        filled = 0
        with pytest.raises(ReadTimeoutError):
            while True:
                filled += await response.raw.readinto(memoryview(bytearray(2 * MIB)))
        assert filled > MIB - 256 * 1024


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMINGS = {
    "sized": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": CHUNKED + b"2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\n\r\n",
    "chunked, bare line feeds": CHUNKED + b"5\nhello\r\n0\n\n",
    "chunked, trailers": CHUNKED + b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32: abc\r\ny: z\r\n\r\n",
    "chunked beats length": CHUNKED.replace(b"chunked", b"Chunked\r\nContent-Length: 1") + b"5\r\nhello\r\n0\r\n\r\n",
    "interim": b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
    + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize("raw", FRAMINGS.values(), ids=FRAMINGS)
async def test_each_framing_is_read_and_its_connection_kept(raw, drip):
    async def script(peer):
        while True:
            await peer.read_request()
            for i in range(0, len(raw), 1 if drip else len(raw)):
                await peer.stream.send(raw[i : i + 1] if drip else raw)
                await anyio.lowlevel.checkpoint()

    async with raw_server(script) as server, session() as http:
        for _ in range(3):
            assert await get(http, server.url) == (200, b"hello")
        response = await http.send(request("GET", server.url, stream=True))
        assert [await response.raw.read(2) for _ in range(4)] == [b"he", b"ll", b"o", b""]
        assert response.raw.at_eof()
        assert server.num_connections == 1


async def test_body_without_a_length_ends_with_the_connection():
    async with raw_server(answer_once(b"HTTP/1.1 200 OK\r\n\r\nhello")) as server, session() as http:
        assert await get(http, server.url) == (200, b"hello")
        assert await get(http, server.url) == (200, b"hello")
        assert server.num_connections == 2


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
async def test_response_without_a_body_leaves_the_connection_usable(method, raw):
    async with raw_server(keep_answering(raw)) as server, session() as http:
        for _ in range(3):
            assert (await get(http, server.url, method))[1] == b""
        assert server.num_connections == 1


# Connections that are not used again


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",  # a second answer to one question
    ],
)
async def test_connection_that_must_not_be_used_again_is_closed(raw):
    async with raw_server(answer_and_hold(raw)) as server, session() as http:
        assert await get(http, server.url) == (200, b"ok")
        assert await get(http, server.url) == (200, b"ok")
        assert server.num_connections == 2
        await server.wait_all_closed()


async def test_connection_on_which_the_server_spoke_unasked_is_not_used_again():
    spoken = anyio.Event()

    async def unasked(peer):
        await peer.answer()
        await anyio.wait_all_tasks_blocked()  # the answer was read
        await peer.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        spoken.set()
        await peer.wait_closed()

    async with raw_server(unasked, keep_answering()) as server, session() as http:
        assert await get(http, server.url) == (200, b"ok")
        await spoken.wait()
        assert await get(http, server.url) == (200, b"ok")
        assert server.num_connections == 2


async def test_connection_idle_for_too_long_is_replaced():
    async with raw_server(keep_answering()) as server, session(connector_args={"keepalive_timeout": 1e-9}) as http:
        await get(http, server.url)
        await get(http, server.url)
        assert server.num_connections == 2


async def test_no_more_idle_connections_are_kept_than_allowed():
    async with raw_server(keep_answering()) as server, session(max_pool_connections=2) as http:
        responses = [await http.send(request("GET", server.url, stream=True)) for _ in range(5)]
        assert server.num_connections == 5  # holding responses unread blocks nobody
        for response in responses:
            assert await response.content == b"ok"
        await server.wait_open(2)
        await get(http, server.url)
        assert server.num_connections == 5
    await server.wait_all_closed()


async def test_close_closes_idle_connections_and_what_comes_back_later():
    async with raw_server(keep_answering()) as server:
        http = session()
        await http.__aenter__()
        await get(http, server.url)
        response = await http.send(request("GET", server.url, stream=True))
        await http.close()
        await http.close()
        assert await response.content == b"ok"
        await server.wait_all_closed()


async def test_response_dropped_unread_closes_its_connection():
    async with raw_server(answer_and_hold(FRAMINGS["sized"])) as server, session() as http:
        response = await http.send(request("GET", server.url, stream=True))
        assert server.num_open == 1
        del response
        gc.collect()
        await server.wait_all_closed()


async def test_response_closed_unread_closes_its_connection():
    async with raw_server(answer_and_hold(FRAMINGS["sized"])) as server, session() as http:
        response = await http.send(request("GET", server.url, stream=True))
        response.raw.close()
        response.raw.close()
        assert await response.raw.read() == b""
        await server.wait_all_closed()


# A stale connection


def close_when_asked_again():
    async def script(peer):
        await peer.answer()
        await peer.read_request()

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_request_on_a_stale_connection_is_sent_again(method):
    seen = []

    async def second(peer):
        seen.append(await peer.answer(b"HTTP/1.1 204 x\r\n\r\n"))

    async with raw_server(close_when_asked_again(), second) as server, session() as http:
        await get(http, server.url)
        payload = Payload(memoryview(b"again")) if method == "PUT" else None
        assert (await http.send(request(method, server.url, payload))).status_code == 204
        assert server.num_connections == 2
    assert seen[0][1] == (b"again" if method == "PUT" else b"")
    assert payload is None or payload.num_sends == 2


@pytest.mark.parametrize(
    ("method", "headers"), [("PUT", {"If-None-Match": "*"}), ("PUT", {"if-match": "a"}), ("POST", {})]
)
async def test_repeat_that_could_be_seen_is_left_to_the_caller(method, headers):
    async with raw_server(close_when_asked_again(), keep_answering()) as server, session() as http:
        await get(http, server.url)
        with pytest.raises(ConnectionClosedError):
            await http.send(AWSPreparedRequest(method, server.url, headers, b"x", stream_output=False))
        assert server.num_connections == 1


async def test_request_is_not_sent_again_once_an_answer_began():
    async def script(peer):
        await peer.answer()
        await peer.answer(b"HTTP/1.1 2")

    async with raw_server(script) as server, session() as http:
        await get(http, server.url)
        with pytest.raises(ConnectionClosedError):
            await get(http, server.url)
        assert server.num_connections == 1


async def test_connection_closed_while_idle_is_noticed_before_anything_is_sent():
    async with raw_server(answer_once(OK), keep_answering()) as server, session() as http:
        await get(http, server.url)
        await server.wait_all_closed()
        payload = Payload(memoryview(b"x"))
        await http.send(request("PUT", server.url, payload, If_None_Match="*"))
        assert payload.num_sends == 1


# Failures


async def test_nothing_listens():
    async with raw_server(keep_answering()) as server:
        pass
    async with session() as http:
        with pytest.raises(EndpointConnectionError):
            await get(http, server.url)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    ],
    ids=lambda raw: repr(raw[:30]),
)
async def test_what_is_not_a_response_is_a_closed_connection(raw):
    async with raw_server(answer_once(raw)) as server, session() as http:
        with pytest.raises(ConnectionClosedError):
            await get(http, server.url)
        assert server.num_connections == 1
        await server.wait_all_closed()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        CHUNKED,
        CHUNKED + b"5\r\nhell",
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n",
        CHUNKED + b"oh\r\nhello",
        CHUNKED + b"1" * 70_000,
        CHUNKED + b"0\r\n" + b"t: 1\r\n" * 200,
    ],
    ids=lambda raw: repr(raw[-20:]),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_body_that_breaks_off_is_an_error(raw, stream):
    async with raw_server(answer_once(raw)) as server, session() as http:
        with pytest.raises(ResponseStreamingError):  # which botocore retries
            await (await http.send(request("GET", server.url, stream=stream))).content
        await server.wait_all_closed()


async def test_server_that_never_answers_times_out():
    async with raw_server(answer_and_hold(b"")) as server, session(timeout=(10, 0.1)) as http:
        with pytest.raises(ReadTimeoutError):
            await get(http, server.url)
        await server.wait_all_closed()


async def test_timeout_of_the_request_itself_goes_first():
    async with raw_server(answer_and_hold(b"")) as server, session(timeout=(10, 1000)) as http:
        asked = request("GET", server.url)
        asked.context = {"read_timeout": 0.1}
        with pytest.raises(ReadTimeoutError):
            await http.send(asked)


async def test_body_that_stalls_times_out():
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with raw_server(answer_and_hold(raw)) as server, session(timeout=(10, 0.1)) as http:
        response = await http.send(request("GET", server.url, stream=True))
        with pytest.raises(ReadTimeoutError):
            await response.raw.read()
        await server.wait_all_closed()


async def test_server_that_stops_reading_times_out():
    async def script(peer):
        await peer.read_head()
        await anyio.sleep_forever()

    async with raw_server(script) as server, session(timeout=(10, 0.1)) as http:
        with pytest.raises(ReadTimeoutError):
            await http.send(request("PUT", server.url, Payload(memoryview(bytes(64 * MIB)))))


async def test_tls_handshake_that_never_ends_times_out():
    async def script(peer):
        await peer.wait_closed()

    async with raw_server(script) as server, session(timeout=(0.1, 10), verify=False) as http:
        with pytest.raises(ConnectTimeoutError):
            await get(http, server.url.replace("http:", "https:"))
        await server.wait_all_closed()


async def test_header_that_smuggles_a_line_is_refused():
    async with raw_server(keep_answering()) as server, session() as http:
        with pytest.raises(HTTPClientError, match="does not allow"):
            await get(http, server.url, x_amz_meta_a="b\r\nEvil: 1")
        assert server.num_connections == 0


# Answers before the request is complete


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 102 Processing\r\n\r\n"])
async def test_early_refusal_ends_the_upload(interim):
    refusal = interim + b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\nslow"

    async def script(peer):
        await peer.read_head()
        await peer.stream.send(refusal)
        await anyio.sleep_forever()  # it never reads the body

    async with raw_server(script, keep_answering()) as server, session() as http:
        payload = Payload(memoryview(bytes(64 * MIB)))
        response = await http.send(request("PUT", server.url, payload))
        assert (response.status_code, await response.content) == (503, b"slow")
        assert await get(http, server.url) == (200, b"ok")
        assert server.num_connections == 2


async def test_interim_answer_does_not_end_the_upload():
    data = os.urandom(16 * MIB)
    seen = []

    async def script(peer):
        await peer.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(await peer.answer())

    async with raw_server(script) as server, session() as http:
        assert (await http.send(request("PUT", server.url, data))).status_code == 200
    assert bytes(seen[0][1]) == data


# The way to the stock session


async def test_file_like_body_takes_the_stock_session():
    seen = []

    async def script(peer):
        seen.append(await peer.answer())

    async with raw_server(script) as server, session() as http:
        response = await http.send(request("PUT", server.url, io.BytesIO(b"file"), Content_Length="4"))
        assert (response.status_code, await response.content) == (200, b"ok")
    assert seen[0][1] == b"file"


async def test_requests_through_a_proxy_take_the_stock_session():
    seen = []

    async def script(peer):
        seen.append(await peer.answer())

    async with raw_server(script) as server, session(proxies={"http": f"http://127.0.0.1:{server.port}"}) as http:
        assert await get(http, "http://s3.example/b/k") == (200, b"ok")
    assert seen[0][0].startswith("GET http://s3.example/b/k HTTP/1.1")


async def test_proxies_for_other_schemes_change_nothing():
    proxies = {"https": "http://127.0.0.1:9", "no": "localhost", "http": ""}
    async with raw_server(keep_answering()) as server, session(proxies=proxies) as http:
        response = await http.send(request("GET", server.url, stream=True))
        assert response.raw.__class__.__name__ == "ResponseBody"
        assert await response.content == b"ok"


# Cancellation


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelled_anywhere_no_half_used_connection_is_left(how):
    """After a cancellation at any step the next request gets its own answer, and nothing stays open."""
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"3\r\nold\r\n0\r\n\r\n"

    async def script(peer):
        while True:
            head, _ = await peer.read_request()
            raw = answer if "/old" in head else OK
            for i in range(0, len(raw), 9):
                await peer.stream.send(raw[i : i + 9])
                await anyio.lowlevel.checkpoint()

    data = memoryview(bytes(8 * MIB))
    async with raw_server(script) as server, session() as http:

        async def exchange():
            response = await http.send(request("PUT", server.url.replace("key", "old"), Payload(data), stream=True))
            return await response.raw.read()

        async def check(result):
            assert result in {None, b"old"}
            assert await get(http, server.url) == (200, b"ok")
            await server.wait_open(1)

        assert await cancel_at_every_step(exchange, check, how=how) >= 3
        assert server.num_connections >= 3
