"""Deleting checkpoints that later ones have replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiodiloco.checkpoint.layout import CheckpointKeys, checkpoints_of
from aiodiloco.checkpoint.load import list_rounds
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["prune"]


async def prune(store: Store, *, keep: int, model_number: int = 0) -> None:
    """Delete all but the latest `keep` complete checkpoints of a model, and incomplete ones older than those.

    Idempotent. A checkpoint's manifest goes first, so that none is ever found that cannot be read.
    """
    rounds = await list_rounds(store, model_number)
    if not rounds:
        return
    await map_concurrently(store.delete, [CheckpointKeys(model_number, number).manifest for number in rounds[:-keep]])
    oldest = CheckpointKeys(model_number, rounds[-keep:][0]).prefix
    old: list[str] = []
    async for key in store.list(checkpoints_of(model_number)):
        if key >= oldest:
            break
        old.append(key)
    await map_concurrently(store.delete, old)
