"""`EventStream`: a response that lasts, and lets go of everything as soon as its client is gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

__all__ = ["EventStream"]

_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would keep events back until there are 4 KiB of them
}


class EventStream(Response):
    """Server-sent events from a generator, which is closed when the client leaves, whatever it waits for.

    Starlette's own StreamingResponse notices on some servers only when it next sends something.

    Args:
        opened: Gives the chunks; entered while the response lasts.
    """

    media_type = "text/event-stream"

    def __init__(self, opened: Callable[[], AbstractContextManager[AsyncGenerator[bytes, None]]]) -> None:
        super().__init__(None, headers=_HEADERS)
        del self.headers["content-length"]
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del scope
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with self._opened() as chunks:
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        if chunk:
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
