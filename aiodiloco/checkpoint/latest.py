"""The latest checkpoint that can be read: where one is damaged, the one before it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiodiloco.checkpoint.load import Loaded, find_manifest, list_rounds, load
from aiodiloco.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["load_latest"]

_log = logging.getLogger(__name__)


async def load_latest(store: Store, model_number: int = 0, *, rank: int | None = None) -> Loaded:
    """Return the latest checkpoint of a model that can be read; see `load`.

    One that cannot is named in a warning, and the one before it is read instead. While one is read a run may complete
    later ones and delete it: then the latest is read, whichever that is by then.

    Raises:
        CheckpointError: there is none, or none can be read; names all that were tried, and why.
        StoreError: the store cannot be listed.
    """
    failed: dict[int, Exception] = {}
    while left := [number for number in await list_rounds(store, model_number) if number not in failed]:
        number = left[-1]
        try:
            loaded = await load(store, await find_manifest(store, number, model_number), rank=rank)
        except (CheckpointError, StoreError) as exc:
            failed[number] = exc
            _log.warning("the checkpoint of round %d cannot be read, so an earlier one is tried: %s", number, exc)
        else:
            if number < max(failed, default=number):
                _log.warning("going on from the checkpoint of round %d, the latest that can be read", number)
            return loaded
    if not failed:
        await find_manifest(store, None, model_number)  # which says that there is none
    reasons = "; ".join(f"round {number}: {exc}" for number, exc in sorted(failed.items(), reverse=True))
    raise CheckpointError(f"no checkpoint under {store.uri} can be read. Tried {reasons}") from failed[max(failed)]
