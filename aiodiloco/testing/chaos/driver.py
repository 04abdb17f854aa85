"""A driver in a process of its own, to be struck: `python -m aiodiloco.testing.chaos.driver <JSON>`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from aiodiloco import LocalProcessExecutor, ModalExecutor, Respawn, launch
from aiodiloco.store.location import FileLocation
from aiodiloco.testing.chaos.points import DRIVER
from aiodiloco.testing.chaos.setting import WORLD_SIZE, Setting
from aiodiloco.testing.chaos.store import StrikingStore

if TYPE_CHECKING:
    from aiodiloco.executors import Executor
    from aiodiloco.store import Store
    from aiodiloco.testing.chaos.strikes import Strikes

__all__ = ["LEASE_S", "PRELOAD", "drive", "run_arguments"]

LEASE_S = 1.5
PRELOAD = ["torch", "torch._dynamo", "aiodiloco.testing.chaos.training"]


def run_arguments(store: str, run_id: str, setting: Setting) -> dict[str, Any]:
    """Return what every driver of this run launches it with."""
    return {
        "entrypoint": "aiodiloco.testing.chaos.setting:train",
        "n_replicas": WORLD_SIZE,
        "store": store,
        "run_id": run_id,
        "timeout": 300.0,
        "lease": LEASE_S,
        "policy": Respawn(max_restarts=3, backoff=0.0),
        "args": {"setting": dataclasses.asdict(setting)},
    }


def strike_stores(strikes: Strikes) -> None:
    """Have the strikes fall at every store in a directory that this process opens from now on."""
    open_directory = FileLocation.open

    def open_struck(location: FileLocation) -> Store:
        return StrikingStore(open_directory(location), strikes)

    FileLocation.open = open_struck  # type: ignore[method-assign, assignment]  # a method by another name


async def drive(executor: Executor, store: str, run_id: str, setting: Setting) -> list[dict[str, Any]]:
    """Launch the run, or attach to it, and return its rows."""
    async with executor, launch(executor, **run_arguments(store, run_id, setting)) as run:
        return [row.to_dict() for row in await run.wait()]


def main(text: str) -> None:
    """Drive as the arguments say, and print the rows."""
    told = json.loads(text)
    setting = Setting(**told["setting"])
    if told["executor"] == "local":
        executor: Executor = LocalProcessExecutor(root=told["root"], detach=True, preload=PRELOAD)
    else:
        executor = ModalExecutor(app_name=told["app"], keep=True, grace=0.5)
    strike_stores(setting.strikes_on(DRIVER))
    rows = asyncio.run(drive(executor, told["store"], told["run_id"], setting))
    print(json.dumps(rows))  # noqa: T201 - to whoever started it


if __name__ == "__main__":
    main(sys.argv[1])
