"""Saying whom a round waits for, and which of several errors ended it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.decision import missing_ranks
from aiodiloco.collective.membership import list_members
from aiodiloco.errors import AiodilocoError, KeyNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.collective.keys import Member, RoundKeys
    from aiodiloco.store import Store

__all__ = ["most_telling", "whom_it_waits_for"]

_LOOK_BOUND_S = 5.0
_MOST_NAMED = 8


async def whom_it_waits_for(
    store: Store, keys: RoundKeys, me: Member, members: Sequence[Member], world_size: int
) -> str:
    """Return what a round lacks, as the second half of a sentence; bounded, and never fails.

    Args:
        me: The asking rank.
        members: Who is expected; empty when not all ranks have joined yet.
    """
    with anyio.move_on_after(_LOOK_BOUND_S):
        try:
            return await _look(store, keys, me, members, world_size)
        except StoreError as exc:
            return f"the store at {store.uri} fails: {exc}"
    return f"the store at {store.uri} does not answer"


async def _look(store: Store, keys: RoundKeys, me: Member, members: Sequence[Member], world_size: int) -> str:
    joined = await list_members(store)
    if me.rank not in joined:
        return f"what this rank wrote under {store.uri} is gone: was the prefix deleted?"
    if absent := sorted(set(range(world_size)) - joined.keys()):
        return f"ranks {_some(absent)} have not joined {store.uri}; are all {world_size} launched?"
    if missing := await missing_ranks(store, keys, members):
        return f"missing the contributions of ranks {_some(missing)}"
    try:
        await store.get(keys.decision, length=0)
    except KeyNotFoundError:
        return "all ranks contributed, but no one has decided the round yet"
    return "all ranks contributed, but not every part of the mean is there: an owner has stopped"


def _some(ranks: Sequence[int]) -> str:
    """Return ranks as text: of hundreds a person needs the first few, and how many there are."""
    rest = len(ranks) - _MOST_NAMED
    return str(list(ranks)) if rest <= 0 else f"{list(ranks[:_MOST_NAMED])} and {rest} more"


def most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error to show of several that ended a round: ours before others', the first before later ones."""
    leaves: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        exc = queue.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            queue.extend(exc.exceptions)
        else:
            leaves.append(exc)
    return next((e for e in leaves if isinstance(e, AiodilocoError)), leaves[0])
