"""Deleting what a rank wrote in rounds that no one can need any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiodiloco.errors import StoreError
from aiodiloco.store.fan_out import map_concurrently

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
        self._written: dict[RoundKeys, dict[str, None]] = {}  # in the order of deletion

    def note(self, round_: Round) -> None:
        """Remember the keys this rank writes in a round; again, if other members than expected were decided.

        The manifest comes first: a round of which part is deleted never looks whole.
        """
        mine = [round_.keys.manifest(round_.me), round_.keys.payload(round_.me)]
        mine += [round_.keys.chunk(round_.me, chunk.index) for chunk in round_.grid]
        if round_.agreement.algorithm == "scatter":
            mine += [round_.reduced_key(index) for index in round_.owned]
        self._written.setdefault(round_.keys, {}).update(dict.fromkeys(mine))

    async def delete_before(self, keys: RoundKeys) -> None:
        """Delete what this rank wrote in rounds before `keys`, in their order; a store that fails is only logged.

        A short round ends this early, and a failing store, too: the next round goes on from there.
        """
        try:
            for old in sorted(k for k in self._written if k.fragment == keys.fragment and k.round < keys.round):
                await self._delete(self._written[old])
                del self._written[old]
        except StoreError as exc:
            _log.warning("could not delete old rounds: %s", exc)

    async def _delete(self, written: dict[str, None]) -> None:
        async def delete(key: str) -> None:
            await self._store.delete(key)
            del written[key]

        head = next(iter(written), None)
        if head is not None:
            await delete(head)
        await map_concurrently(delete, list(written), limit=_DELETES_AT_ONCE)
