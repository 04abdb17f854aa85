"""Ask a supervisor: one request, one answer, one connection."""

from __future__ import annotations

import json
from typing import Any

import anyio
import anyio.abc

__all__ = ["SupervisorGoneError", "ask"]

_ATTEMPTS = 3


class SupervisorGoneError(Exception):
    """Nobody listens on the supervisor's socket any more."""


async def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the supervisor's answer to `request`; may take as long as the supervisor does.

    Raises:
        SupervisorGoneError: it has ended, before or while it was asked.
    """
    line = json.dumps(request).encode() + b"\n"
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
