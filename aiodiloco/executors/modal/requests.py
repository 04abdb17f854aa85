"""Requests to Modal that can be let go of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["NoAnswerError", "Outcome", "Requests", "outcome_of"]

T = TypeVar("T")
Outcome: TypeAlias = tuple[T | None, BaseException | None]


class NoAnswerError(Exception):
    """Modal did not answer in time."""


class Requests:
    """Runs requests in tasks of their own.

    Modal's client works in another thread, and a request that is cancelled ends when that thread has time for it. An
    anyio scope would go on cancelling meanwhile, in every turn of the event loop, which takes that time away: a few
    late answers would make all others late as well. So a request is cancelled once, and not waited for.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # event loops hold their tasks weakly

    async def answer(self, request: Callable[[], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Return what `request()` returns, or raise what it raises; when this is cancelled, so is the request.

        Raises:
            NoAnswerError: there was none within the time.
        """
        task = asyncio.get_running_loop().create_task(outcome_of(request))
        try:
            await asyncio.wait((task,), timeout=within_s)
        finally:
            if not task.done():
                self._let_go(task)
        if not task.done():
            raise NoAnswerError
        value, error = task.result()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # it is one if there was no error

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.cancel()


async def outcome_of(request: Callable[[], Coroutine[Any, Any, T]]) -> Outcome[T]:
    """Return what `request()` returns and None, or None and what it raises, but for its own cancellation.

    A replica's SystemExit, raised by a task, would stop the event loop.
    """
    try:
        return await request(), None
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # noqa: BLE001 - raised where the answer is waited for
        return None, exc
