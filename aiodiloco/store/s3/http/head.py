"""The heads of HTTP/1.1 messages: requests to bytes, bytes to responses. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MAX_HEAD_BYTES", "MalformedResponseError", "ResponseHead", "encode_head", "parse_chunk_size", "parse_head"]

MAX_HEAD_BYTES = 64 * 1024
"""A longer response head, chunk-size line or trailer is refused."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_SEPARATE = frozenset(("set-cookie",))
_FORBIDDEN = re.compile(r"[\r\n\0]")


class MalformedResponseError(Exception):
    """The peer does not speak HTTP/1.1, or not to the end."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A parsed response head.

    Attributes:
        status: 100 to 999.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        headers: Lower-case name -> value; repeated headers joined by ", ".
    """

    status: int
    minor: int
    headers: Mapping[str, str]

    @property
    def is_interim(self) -> bool:
        """True for 1xx: the real head is still to come."""
        return self.status < 200

    @property
    def keeps_alive(self) -> bool:
        """True if the connection may carry another request afterwards."""
        options = {option.strip() for option in self.headers.get("connection", "").lower().split(",")}
        return "close" not in options and (self.minor == 1 or "keep-alive" in options)

    def is_chunked(self) -> bool:
        """Return whether the body comes in chunks; any other transfer coding raises MalformedResponseError."""
        coding = self.headers.get("transfer-encoding", "").strip().lower()
        if coding not in {"", "chunked"}:
            raise MalformedResponseError(f"transfer coding {coding[:100]!r} was not asked for")
        return coding == "chunked"

    def num_body_bytes(self, method: str) -> int | None:
        """Return how many bytes follow the head of an unchunked response; None means all until the peer closes.

        Raises:
            MalformedResponseError: no length can be made out (RFC 9112, 6.3).
        """
        if method == "HEAD" or self.status in {204, 304}:
            return 0
        stated = {part.strip() for part in self.headers.get("content-length", "").split(",")}
        if stated == {""}:
            return None
        value = stated.pop()
        if stated or not (value.isascii() and value.isdecimal() and len(value) <= 18):
            raise MalformedResponseError(f"content-length {self.headers['content-length'][:100]!r} is no length")
        return int(value)


def encode_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a request head.

    Args:
        method: GET, PUT ...
        target: Path and query, percent-encoded.
        headers: Names and values in the order to be sent.

    Raises:
        ValueError: something holds a line break, a space in the wrong place, or is no header name.
    """
    if not _TOKEN.fullmatch(method) or re.search(r"[^\x21-\x7e]", target):
        raise ValueError(f"request line {method[:20]!r} {target[:200]!r} holds characters that HTTP does not allow")
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value):
            raise ValueError(f"header {name[:100]!r} holds characters that HTTP does not allow")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "\r\n"]).encode()


def parse_head(raw: bytes) -> ResponseHead:
    """Return the response head in `raw`, which ends with the empty line.

    Raises:
        MalformedResponseError: it is not the head of an HTTP/1.x response.
    """
    first, *lines = raw[:-4].split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise MalformedResponseError(f"not an HTTP/1.1 response: it begins with {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if not colon or not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value):
            raise MalformedResponseError(f"not a header: {line[:60]!r}")
        key, text = name.lower(), value.strip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers and key not in _SEPARATE else text
    return ResponseHead(int(status[2]), int(status[1]), headers)


def parse_chunk_size(line: bytes) -> int:
    """Return the number of bytes a chunk-size line announces; extensions are ignored.

    Raises:
        MalformedResponseError: it announces nothing.
    """
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise MalformedResponseError(f"not a chunk size: {line[:60]!r}")
    return int(match[1], 16)
