"""Results in the order in which replicas end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Self

import anyio

from aiodiloco.executors.collect import end_at_deadline, end_when_cancelled
from aiodiloco.executors.group import Group
from aiodiloco.records import ReplicaHandle, ReplicaResult

if TYPE_CHECKING:
    from aiodiloco.executors.calls import Calls

__all__ = ["Completed"]


class Completed(AsyncIterator[ReplicaResult]):
    """Iterates over the results of replicas as they end.

    An iterator and not a generator: no scope or task group is open between two results (PEP 789), so the caller may
    stop, go on in another task, or be cancelled while waiting, and no result is lost.
    """

    def __init__(self, calls: Calls, handles: Sequence[ReplicaHandle], deadline: tuple[float, str]) -> None:
        self._calls = calls
        self._handles = list(handles)
        self._latest, self._why = deadline
        self._group: Group | None = None
        self._given: set[int] = set()
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReplicaResult:
        if self._group is None:
            self._group = Group(self._calls, self._handles)
        try:
            return await self._next(self._group)
        except anyio.get_cancelled_exc_class():
            await end_when_cancelled(self._group)
            raise

    def __del__(self) -> None:
        if self._group is not None:
            self._group.close()

    async def _next(self, group: Group) -> ReplicaResult:
        while len(self._given) < len(self._handles):
            if (index := self._first_not_given(group)) is not None:
                self._given.add(index)
                return group.rows[index] or group.results(self._why)[index]
            if not await group.wait_for_change(self._latest):
                await end_at_deadline(group, self._why)
                self._over = True
        raise StopAsyncIteration

    def _first_not_given(self, group: Group) -> int | None:
        candidates = group.ended + (group.unfinished() if self._over else [])
        return next((index for index in candidates if index not in self._given), None)
