"""The small JSON objects of a run: sealed with a digest, so that what was damaged is never taken for what was written.

A document is one JSON object whose last member is the digest of all that comes before it:

    {"agreement": "8c7f…", "num_chunks": 17, "weight": 1.0, "digest": "f20d3e9a11c0b55e"}

Any program can read it, and a single flipped bit, in a digit say, cannot pass. What another release added is passed
over.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiodiloco.codec import digest
from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.store import Buffer

__all__ = ["parse_document", "seal_document"]

_SEAL_AT = -len(b', "digest": "0123456789abcdef"}')


def seal_document(fields: Mapping[str, Any]) -> bytes:
    """Return `fields`, at least one, as a document; equal fields give equal bytes."""
    assert fields
    assert "digest" not in fields
    body = json.dumps(fields, sort_keys=True).encode()[:-1]
    return body + _seal(body)


def parse_document(data: Buffer, what: str, *required: str, sealed: bool = True) -> dict[str, Any]:
    """Return the fields of a document, which has at least those `required`.

    Args:
        data: What `seal_document` returned.
        what: What it should be, to begin a message with.
        sealed: Whether it must have a digest; else plain JSON from another program will do.

    Raises:
        ChunkError: it is no such document, or it was damaged.
    """
    data = bytes(data)
    is_whole = data[_SEAL_AT:] == _seal(data[:_SEAL_AT])
    if not is_whole and (sealed or b'"digest"' in data):
        raise ChunkError(f"{what} holds {_excerpt(data)}, whose digest is missing or wrong: damaged, or not ours")
    try:
        fields = json.loads(data)
    except ValueError as exc:
        raise ChunkError(f"{what} holds {_excerpt(data)}, not JSON: is something else writing here?") from exc
    if not isinstance(fields, dict) or not fields.keys() >= set(required):
        raise ChunkError(f"{what} holds {str(fields)[:80]}, without {', '.join(required)}: written by another program?")
    fields.pop("digest", None)
    return fields


def _seal(body: bytes) -> bytes:
    return b', "digest": "%s"}' % digest(body).hex().encode()


def _excerpt(data: bytes) -> str:
    return f"{data[:60]!r}{'…' if len(data) > 60 else ''} ({len(data)} bytes)"
