"""Deleting what a rank wrote in rounds that no one can need any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError

if TYPE_CHECKING:
    from aiodiloco.collective.keys import RoundKeys
    from aiodiloco.collective.round import Round
    from aiodiloco.store import Store

__all__ = ["Cleanup"]

_DELETES_AT_ONCE = 4  # there is a whole round for it

_log = logging.getLogger(__name__)


class Cleanup:
    """Remembers what this rank wrote, round by round, and deletes it when nobody can need it.

    A rank that contributes to a round has finished the one before. So once a round is complete, everyone who was in it
    is past all rounds before the last. Decisions stay: they are small, and the record of who took part.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[RoundKeys, list[str]] = {}

    def note(self, round_: Round) -> None:
        """Remember the keys this rank wrote in a round that is complete."""
        mine = [round_.keys.chunk(round_.me, chunk.index) for chunk in round_.grid]
        mine += [round_.keys.manifest(round_.me), round_.keys.payload(round_.me)]
        if round_.agreement.algorithm == "scatter":
            mine += [round_.reduced_key(index) for index in round_.owned]
        self._written[round_.keys] = mine

    async def delete_before(self, keys: RoundKeys) -> None:
        """Delete what this rank wrote in rounds before `keys`; a store that fails is only logged."""
        old = [k for k in self._written if k.fragment == keys.fragment and k.round < keys.round]
        remaining = ((k, key) for k in old for key in tuple(self._written[k]))

        async def delete() -> None:
            for k, key in remaining:
                await self._store.delete(key)
                self._written[k].remove(key)  # a short round ends this early: the next one goes on from here

        try:
            async with anyio.create_task_group() as tg:
                for _ in range(_DELETES_AT_ONCE):
                    tg.start_soon(delete)
        except* StoreError as errors:
            _log.warning("could not delete old rounds: %s", errors.exceptions[0])
        for k in old:
            del self._written[k]
