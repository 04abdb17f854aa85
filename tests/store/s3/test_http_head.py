"""Heads of HTTP messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.store.s3.http.head import MalformedResponseError, encode_head, parse_chunk_size, parse_head


def _head(*lines: str):
    return parse_head("\r\n".join([*lines, "", ""]).encode())


def test_request_head_is_encoded_line_by_line():
    raw = encode_head("PUT", "/b/k?x=1", [("Host", "h"), ("x-amz-meta-a", "ä")])
    assert raw == "PUT /b/k?x=1 HTTP/1.1\r\nHost: h\r\nx-amz-meta-a: ä\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET /", "/", ("a", "b")),
        ("GET", "/a b", ("a", "b")),
        ("GET", "/a\r\nx", ("a", "b")),
        ("GET", "/ä", ("a", "b")),
        ("GET", "/", ("a:", "b")),
        ("GET", "/", ("", "b")),
        ("GET", "/", ("a", "b\r\nEvil: 1")),
        ("GET", "/", ("a", "b\nEvil: 1")),
        ("GET", "/", ("a", "b\0")),
    ],
)
def test_request_that_would_smuggle_a_line_is_refused(method, target, header):
    with pytest.raises(ValueError, match="does not allow"):
        encode_head(method, target, [header])


def test_response_head_is_parsed_with_lower_case_names():
    head = _head("HTTP/1.1 206 Partial Content", 'ETag: "a:b"', "CONTENT-LENGTH:  12\t", "X-Empty:")
    assert (head.status, head.minor) == (206, 1)
    assert head.headers == {"etag": '"a:b"', "content-length": "12", "x-empty": ""}
    assert head.num_body_bytes("GET") == 12
    assert not head.is_chunked()


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/2 200 OK"],
        ["HTTP/1.1 20 OK"],
        ["HTTP/1.1 2000 OK"],
        ["HTTP/1.1 200OK"],
        ["\x15\x03\x01"],
        [""],
        ["HTTP/1.1 200 OK", "no colon"],
        ["HTTP/1.1 200 OK", " folded: 1"],
        ["HTTP/1.1 200 OK", "name : 1"],
        ["HTTP/1.1 200 OK", "a: 1\n2"],
        ["HTTP/1.1 200 OK", "a: 1\0"],
    ],
)
def test_head_that_is_not_http_is_refused(lines):
    with pytest.raises(MalformedResponseError):
        _head(*lines)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(raw):
    for whole in (raw, b"HTTP/1.1 200 OK\r\n" + raw):
        try:
            head = parse_head(whole + b"\r\n\r\n")
            head.is_chunked()
            assert (head.num_body_bytes("GET") or 0) >= 0
            assert head.keeps_alive in {True, False}
        except MalformedResponseError:
            pass


@pytest.mark.parametrize("value", ["-1", "+1", "1.0", "0x10", "1, 2", "1,", "٣", "9" * 19, "one"])
def test_length_that_is_none_is_refused(value):
    with pytest.raises(MalformedResponseError, match="no length"):
        _head("HTTP/1.1 200 OK", f"Content-Length: {value}").num_body_bytes("GET")


def test_length_said_twice_alike_counts_once():
    assert _head("HTTP/1.1 200 OK", "Content-Length: 3", "Content-Length: 3").num_body_bytes("GET") == 3


def test_two_lengths_are_refused():
    with pytest.raises(MalformedResponseError, match="no length"):
        _head("HTTP/1.1 200 OK", "Content-Length: 3", "Content-Length: 4").num_body_bytes("GET")


@pytest.mark.parametrize(
    ("status", "method", "num_bytes"),
    [(200, "HEAD", 0), (204, "GET", 0), (304, "GET", 0), (404, "GET", 7)],
)
def test_responses_without_a_body(status, method, num_bytes):
    assert _head(f"HTTP/1.1 {status} x", "Content-Length: 7").num_body_bytes(method) == num_bytes


def test_response_without_a_length_ends_with_the_connection():
    assert _head("HTTP/1.1 200 OK").num_body_bytes("GET") is None


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked", "identity"])
def test_transfer_coding_that_was_not_asked_for_is_refused(coding):
    with pytest.raises(MalformedResponseError, match="not asked for"):
        _head("HTTP/1.1 200 OK", f"Transfer-Encoding: {coding}").is_chunked()


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        (["HTTP/1.1 200 OK"], True),
        (["HTTP/1.1 200 OK", "Connection: Close"], False),
        (["HTTP/1.1 200 OK", "Connection: x, close"], False),
        (["HTTP/1.1 200 OK", "Connection: keep-alive", "Connection: close"], False),
        (["HTTP/1.0 200 OK"], False),
        (["HTTP/1.0 200 OK", "Connection: Keep-Alive"], True),
    ],
)
def test_which_connections_are_kept(lines, keeps):
    assert _head(*lines).keeps_alive is keeps


@pytest.mark.parametrize(("line", "size"), [(b"0", 0), (b"1A", 26), (b"ff;name=value", 255), (b"a ;x", 10)])
def test_chunk_sizes(line, size):
    assert parse_chunk_size(line) == size


@pytest.mark.parametrize("line", [b"", b"zz", b"-1", b"0x1", b"1 2", b"f" * 16, b";x"])
def test_what_is_no_chunk_size_is_refused(line):
    with pytest.raises(MalformedResponseError):
        parse_chunk_size(line)
