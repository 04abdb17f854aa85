"""Ask a supervisor: one request, one answer, one connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

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
    for attempt in range(_ATTEMPTS):
        try:
            connection = await anyio.connect_unix(path)
            break
        except OSError as exc:  # also when more connect at once than the system queues
            if attempt == _ATTEMPTS - 1:
                raise SupervisorGoneError(str(exc)) from exc
            await anyio.sleep(0.02 * (attempt + 1))
    async with connection:
        try:
            await connection.send(line)
            return await _receive_line(connection)
        except (anyio.BrokenResourceError, anyio.EndOfStream) as exc:
            raise SupervisorGoneError("it ended while it was asked") from exc


async def _receive_line(connection: anyio.abc.ByteReceiveStream) -> dict[str, Any]:
    received = b""
    while not received.endswith(b"\n"):
        received += await connection.receive()
    answer = json.loads(received)
    assert isinstance(answer, dict)
    return answer
