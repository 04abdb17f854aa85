"""Reading the small JSON objects of a run: what another release added is passed over, what is broken is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from aiodiloco.store import Buffer

__all__ = ["parse_document"]


def parse_document(data: Buffer, what: str, *required: str) -> dict[str, Any]:
    """Return the JSON object in `data`, which has at least the `required` fields.

    Raises:
        ChunkError: it is no such object; the message says `what` it should be.
    """
    try:
        fields = json.loads(bytes(data))
    except ValueError as exc:
        raise ChunkError(f"{what} holds {bytes(data)[:60]!r}, not JSON: is something else writing here?") from exc
    if not isinstance(fields, dict) or not fields.keys() >= set(required):
        raise ChunkError(f"{what} holds {str(fields)[:80]}, without {', '.join(required)}: written by another program?")
    return fields
