"""Deleting what no one can need any more: a rank's own, and what those leave who died or bet wrongly."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiodiloco.collective.keys import ROUNDS
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
        self._swept: dict[int, str] = {}  # by fragment: the key to go on after

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

    async def sweep_before(self, keys: RoundKeys) -> None:
        """Delete whatever is left of rounds before `keys` but their decisions; a store that fails is only logged.

        For one rank to call. It finds what nobody else deletes: contributions of processes that died, chunks of means
        that were formed over members who were not those decided, and announcements.
        """
        try:
            left = await self._left_before(keys)
            arrivals = [key for key in left if "/arrivals/" in key]
            await map_concurrently(self._store.delete, arrivals, limit=_DELETES_AT_ONCE)
            await map_concurrently(self._store.delete, sorted(left - set(arrivals)), limit=_DELETES_AT_ONCE)
        except StoreError as exc:
            _log.warning("could not sweep old rounds: %s", exc)
        else:
            self._swept[keys.fragment] = keys.prefix

    async def _left_before(self, keys: RoundKeys) -> set[str]:
        left: set[str] = set()
        async for key in self._store.list(ROUNDS, start_after=self._swept.get(keys.fragment, "")):
            if key >= keys.prefix:
                break
            if keys.is_sibling(key) and not key.endswith("/decision.json"):
                left.add(key)
        return left

    async def _delete(self, written: dict[str, None]) -> None:
        async def delete(key: str) -> None:
            await self._store.delete(key)
            del written[key]

        head = next(iter(written), None)
        if head is not None:
            await delete(head)
        await map_concurrently(delete, list(written), limit=_DELETES_AT_ONCE)
