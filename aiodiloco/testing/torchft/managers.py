"""Managers for torchft's tests, made from the arguments that those pass to torchft's own."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

from aiodiloco.codec import digest
from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.torchft import StoreManager

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

__all__ = ["Managers"]


class Managers:
    """Makes a `StoreManager` for each `Manager` that a test wants. All of one test meet in one directory.

    Args:
        directory: For the stores.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._incarnations: defaultdict[tuple[str, str], itertools.count[int]] = defaultdict(itertools.count)
        self._alone: list[StoreManager] = []

    def manager(
        self,
        *,
        load_state_dict: Any,
        state_dict: Any,
        min_replica_size: int,
        replica_id: str,
        lighthouse_addr: str,
        timeout: timedelta,
        **_: object,
    ) -> StoreManager:
        """Return the manager of a replica; a replica made again comes as the next process of its rank."""
        with self._lock:
            incarnation = next(self._incarnations[lighthouse_addr, replica_id])
        all_reduce = ObjectStoreAllReduce(
            self._directory / digest(lighthouse_addr.encode()).hex(),
            rank=int(replica_id),
            world_size=min_replica_size,
            incarnation=incarnation,
            takes_over=True,
            timeout=3 * timeout.total_seconds(),
        )
        return StoreManager(all_reduce, load_state_dict=load_state_dict, state_dict=state_dict)

    def counted(self, *_: object) -> MagicMock:
        """Return a manager of a run of one replica, whose calls are counted and may be replaced."""
        all_reduce = ObjectStoreAllReduce(self._directory / f"alone-{next(self._numbers)}", rank=0, world_size=1)
        self._alone.append(StoreManager(all_reduce))
        return MagicMock(wraps=self._alone[-1], _use_async_quorum=False)

    def close(self) -> None:
        """Shut down the managers that the tests leave open."""
        for manager in self._alone:
            manager.shutdown()
