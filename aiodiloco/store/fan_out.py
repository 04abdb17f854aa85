"""Many requests to a store at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["map_concurrently"]

A = TypeVar("A")
T = TypeVar("T")


async def map_concurrently(call: Callable[[A], Awaitable[T]], arguments: Iterable[A], *, limit: int = 16) -> list[T]:
    """Return `[await call(a) for a in arguments]`, up to `limit` at once.

    The first error cancels the others and is raised as it is, not in an ExceptionGroup.
    """
    waiting = list(arguments)
    results: dict[int, T] = {}
    errors: list[Exception] = []
    gate = anyio.CapacityLimiter(limit)

    async def run(index: int) -> None:
        try:
            async with gate:
                results[index] = await call(waiting[index])
        except Exception as exc:  # noqa: BLE001 - raised below
            errors.append(exc)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index in range(len(waiting)):
            tasks.start_soon(run, index)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(waiting))]
