"""Where trials run their replicas: processes of this machine, and Modal's client and runtime on this machine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from aiodiloco import LocalProcessExecutor, ModalExecutor
from aiodiloco.testing.chaos.driver import PRELOAD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from aiodiloco.executors import Executor
    from aiodiloco.testing.modal import LoopbackModal

__all__ = ["Local", "Modal", "Place", "running_places"]


class Place(Protocol):
    """Runs replicas, for this process and for drivers that it starts."""

    name: str
    executor: Executor

    def driver_arguments(self, directory: Path) -> dict[str, str]:
        """Return what a driver process must be told to run replicas here."""
        ...

    def driver_env(self) -> Mapping[str, str]:
        """Return what it needs in its environment."""
        ...


class Local:
    """Processes of this machine."""

    name = "local"

    def __init__(self, executor: LocalProcessExecutor) -> None:
        self.executor: Executor = executor

    def driver_arguments(self, directory: Path) -> dict[str, str]:
        """Return where the driver's own supervisor leaves its traces."""
        return {"executor": "local", "root": str(directory / "driver")}

    def driver_env(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}


class Modal:
    """The loopback control plane."""

    name = "modal"

    def __init__(self, executor: ModalExecutor, plane: LoopbackModal) -> None:
        self.executor: Executor = executor
        self._plane = plane

    def driver_arguments(self, directory: Path) -> dict[str, str]:
        """Return the name of the driver's app."""
        return {"executor": "modal", "app": f"chaos-{directory.parent.name}"}

    def driver_env(self) -> Mapping[str, str]:
        """Return where the control plane is."""
        return self._plane.env


@contextlib.asynccontextmanager
async def running_places(directory: Path) -> AsyncIterator[dict[str, Place]]:
    """Have both places, by name; torch is imported once in each."""
    from aiodiloco.testing.modal import LoopbackModal

    plane = LoopbackModal(preload=["aiodiloco.executors.modal.replica", *PRELOAD], idle_s=0)
    async with contextlib.AsyncExitStack() as stack:
        local = await stack.enter_async_context(
            LocalProcessExecutor(root=directory / "local", grace=0.5, preload=PRELOAD)
        )
        await stack.enter_async_context(plane)
        client = await plane.client()
        stack.push_async_callback(client.close.aio)
        modal = await stack.enter_async_context(ModalExecutor(client=client, grace=0.5))
        yield {"local": Local(local), "modal": Modal(modal, plane)}
