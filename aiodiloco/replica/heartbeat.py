"""Heartbeats: how others know that a replica lives, without comparing clocks."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Self

import anyio

from aiodiloco.collective.membership import BEAT_S, beat
from aiodiloco.errors import StoreError

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from aiodiloco.collective.keys import Member
    from aiodiloco.store import Store

__all__ = ["Heartbeat"]

_log = logging.getLogger(__name__)

_LEAVE_BOUND_S = 5.0


class Heartbeat:
    """Overwrites one small object every few seconds, and says in it when the replica leaves.

    Whoever comes for the rank waits until it stands still; one that left is not waited for.
    """

    def __init__(self, store: Store, member: Member) -> None:
        self._store = store
        self._member = member
        self._numbers = itertools.count()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._beat_forever)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.move_on_after(_LEAVE_BOUND_S, shield=True):
                await self._beat(left=True)

    async def _beat_forever(self) -> None:
        while True:
            await self._beat()
            await anyio.sleep(BEAT_S)

    async def _beat(self, *, left: bool = False) -> None:
        try:
            await beat(self._store, self._member, next(self._numbers), left=left)
        except StoreError as exc:
            _log.warning("no heartbeat of %s: %s", self._member, exc)
