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
    kept = (await list_rounds(store, model_number))[-keep:]
    if not kept:
        return
    oldest = CheckpointKeys(model_number, kept[0])
    old = [key async for key in store.list(checkpoints_of(model_number)) if key < oldest.prefix]
    manifests = [key for key in old if CheckpointKeys.of_manifest(key)]
    await map_concurrently(store.delete, manifests)
    await map_concurrently(store.delete, [key for key in old if key not in manifests])
