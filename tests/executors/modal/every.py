"""An executor for each of the test entrypoints, as a user has one for each function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modal

from aiodiloco.executors.modal import ModalSpawnExecutor
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from aiodiloco.records import ReplicaHandle


class EveryEntrypoint:
    """Launches a `ModalSpawnExecutor`'s function by the entrypoint it is given; all else is the executor's own."""

    def __init__(self, client: modal.Client, *, grace: float) -> None:
        self.app = modal.App("every-entrypoint")
        self.functions = {
            name: self.app.function(timeout=600)(getattr(entrypoints, name)) for name in entrypoints.__all__
        }
        self.executors = {
            name: ModalSpawnExecutor(function, client=client, grace=grace) for name, function in self.functions.items()
        }

    async def launch_replicas(
        self, n_replicas: int, entrypoint: Any = None, *args: Any, **options: Any
    ) -> list[ReplicaHandle]:
        name = entrypoint.rpartition(":")[2] if isinstance(entrypoint, str) else getattr(entrypoint, "__name__", "")
        executor = self.executors.get(name, self.executors["add"])
        return await executor.launch_replicas(n_replicas, entrypoint, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executors["add"], name)
