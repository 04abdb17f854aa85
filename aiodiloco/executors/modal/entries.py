"""Asking Modal for log entries."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.executors.modal.outcome import is_transient
from aiodiloco.executors.modal.pauses import Pauses
from aiodiloco.executors.modal.requests import NoAnswerError
from aiodiloco.executors.modal.seen import SKEW

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import modal
    from modal.types import LogEntry

__all__ = ["ANSWER_S", "fetch", "patiently", "tail"]

ANSWER_S = 30.0
"""How long a control plane may be away until the log counts as lost."""


async def tail(call: modal.FunctionCall[Any], num: int) -> list[LogEntry]:
    """Return the last `num` entries of a call's log."""
    return [entry async for entry in call.logs.tail.aio(num)]


async def fetch(
    source: modal.FunctionCall[Any] | modal.Function[..., Any, Any], since: datetime.datetime
) -> list[LogEntry]:
    """Return all entries of a call's or a function's log from `since` on."""
    until = datetime.datetime.now(datetime.UTC) + SKEW
    return [entry async for entry in source.logs.fetch.aio(since=since, until=until)]


async def patiently(ask: Callable[[], Awaitable[list[LogEntry]]]) -> list[LogEntry]:
    """Return what `ask` returns, asking again while the control plane cannot be reached.

    Raises:
        NoAnswerError: it could not be reached for `ANSWER_S`. Modal's own errors as they are.
    """
    pauses = Pauses()
    with anyio.move_on_after(ANSWER_S):
        while True:
            try:
                return await ask()
            except Exception as exc:
                if not is_transient(exc):
                    raise
            await pauses.wait()
    raise NoAnswerError
