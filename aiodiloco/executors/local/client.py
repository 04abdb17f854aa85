"""Ask a supervisor: one request, one answer, one connection."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SupervisorGoneError", "ask", "encode"]

_ATTEMPTS = 3


class SupervisorGoneError(Exception):
    """Nobody listens on the supervisor's socket any more."""


def encode(request: Mapping[str, Any]) -> bytes:
    """Return the request as the supervisor reads it."""
    return json.dumps(request).encode() + b"\n"


async def ask(path: str, line: bytes) -> dict[str, Any]:
    """Return the supervisor's answer to an encoded request; may take as long as the supervisor does.

    Raises:
        SupervisorGoneError: it has ended, before or while it was asked.
    """
    reader, writer = await _connect(path)
    try:
        writer.write(line)
        await writer.drain()
        answer = await reader.readline()
    except OSError as exc:
        raise SupervisorGoneError(str(exc)) from exc
    finally:
        writer.close()
    if not answer.endswith(b"\n"):
        raise SupervisorGoneError("it ended while it was asked")
    fields = json.loads(answer)
    assert isinstance(fields, dict)
    return fields


async def _connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with asyncio's streams.

    With anyio's (4.16), a read that is cancelled in the same turn of the loop in which its answer arrives logs an
    InvalidStateError; a deadline that ends hundreds of replicas does that.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return await asyncio.open_unix_connection(path)
        except OSError:  # also when more connect at once than the system queues
            await anyio.sleep(0.02 * attempt)
    try:
        return await asyncio.open_unix_connection(path)
    except OSError as exc:
        raise SupervisorGoneError(str(exc)) from exc
