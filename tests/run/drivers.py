"""Drivers in processes of their own, to be killed or stopped: `python -m tests.run.drivers …` from the repository."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiodiloco
from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.run import driver, launching, starter

TTL_S = 1.5
N_REPLICAS = 3


def work(*, rank: int, directory: str) -> int:
    """Say that it runs, wait until the test says go, return the rank."""
    (Path(directory) / f"{rank}.{os.getpid()}").touch()
    while not (Path(directory) / "go").exists():
        time.sleep(0.01)
    return rank


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(point: str) -> None:
    """Arrange for this process to be killed at a named point."""
    write_record, record_call = launching.write_record, starter.record_call

    async def after_recording(*args: Any) -> Any:
        await write_record(*args)
        _die()

    async def instead(*_: Any, **__: Any) -> Any:
        _die()

    async def after_spawning(store: Any, handle: Any, slot: Any) -> Any:
        if slot.rank == 1:
            _die()
        return await record_call(store, handle, slot)

    async def after_journaling(store: Any, handle: Any, slot: Any) -> Any:
        await record_call(store, handle, slot)
        if slot.rank == 1:
            _die()
        return True

    arrangements = {
        "the run was recorded": (launching, "write_record", after_recording),
        "the lease is won": (starter.Starter, "start_all", lambda _: _die()),
        "a replica was spawned": (starter, "record_call", after_spawning),
        "a replica was journaled": (starter, "record_call", after_journaling),
        "the result is written": (driver, "write_result", instead),
    }
    if point != "never":
        setattr(*arrangements[point])


async def main(root: str, store: str, point: str) -> None:
    _die_at(point)
    executor = LocalProcessExecutor(root=f"{root}/executor", detach=True)
    block = aiodiloco.launch(
        executor,
        "tests.run.drivers:work",
        N_REPLICAS,
        store=store,
        run_id="a-run",
        timeout=60,
        lease=TTL_S,
        args={"directory": root},
    )
    async with block as run:
        print("launched", flush=True)  # noqa: T201 - to the test that runs it
        rows = await run.wait()
    print(json.dumps([row.to_dict() for row in rows]), flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
