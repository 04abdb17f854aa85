"""Cursors as the ids of server-sent events: one line of text, short enough for a header."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import TYPE_CHECKING

from aiodiloco.events import Cursor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cursor_of", "id_of"]

_PLAIN_CHARS = 1024  # longer ones, of runs with many replicas, are compressed: proxies cut headers off at 8 KiB or so
_PACKED = "~"
_MAX_ID_CHARS = 1 << 16
_MAX_BYTES = 1 << 20
_MAX_WRITER_CHARS = 128
_MAX_SEQ = 10**12 - 1  # the digits of an object's key


def id_of(last_seq: Mapping[str, int]) -> str:
    """Return the id of the event after which a reader has read so far: a cursor's JSON, compressed where it is long."""
    text = json.dumps(last_seq, sort_keys=True)
    if len(text) <= _PLAIN_CHARS:
        return text
    return _PACKED + base64.urlsafe_b64encode(zlib.compress(text.encode(), 1)).decode()


def cursor_of(event_id: str) -> Cursor:
    """Return the cursor that `id_of` wrote. Raises ValueError, naming the remedy, where it did not."""
    if len(event_id) > _MAX_ID_CHARS:
        raise ValueError(f"an event id of {len(event_id)} characters: send back the id of the last event received")
    cursor = Cursor.from_json(_unpack(event_id) if event_id.startswith(_PACKED) else event_id)
    for writer, seq in cursor.last_seq.items():
        if len(writer) > _MAX_WRITER_CHARS or seq > _MAX_SEQ:
            raise ValueError(f"not an event id: {event_id[:80]!r}; send back the id of the last event received")
    return cursor


def _unpack(event_id: str) -> bytes:
    try:
        packed = base64.b64decode(event_id[len(_PACKED) :], altchars=b"-_", validate=True)
        text = zlib.decompressobj().decompress(packed, _MAX_BYTES)
    except (binascii.Error, zlib.error, ValueError) as exc:
        raise ValueError(
            f"not an event id: {event_id[:80]!r} ({exc}); send back the id of the last event received"
        ) from exc
    return text
