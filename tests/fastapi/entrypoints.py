"""What the service of the tests may launch."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio

from aiodiloco.events import EventWriter
from aiodiloco.store import open_store


async def _emit(uri: str, rank: int, steps: int) -> None:
    async with open_store(uri) as store, EventWriter(store, f"{rank}-0", flush_s=0.05) as events:
        events.emit("joined", rank=rank)
        for step in range(1, steps + 1):
            events.emit(
                "step", step=step, round=step // 10, loss=4.0 / step + 0.1 * rank, tokens=step, tokens_per_s=9.0
            )
            print(f"rank {rank} step {step}", flush=True)  # noqa: T201 - into its log
        events.emit("left", rank=rank, error=None)


async def count(*, rank: int, rendezvous_uri: str, steps: int = 20) -> int:
    """Emit some events, print as many lines, and return the rank."""
    await _emit(rendezvous_uri, rank, steps)
    return rank


def hold(*, rank: int, directory: str) -> int:
    """Say which process this is, and stay until the test says go."""
    (Path(directory) / f"{rank}.{os.getpid()}").touch()
    print("holding", flush=True)  # noqa: T201 - into its log
    while not (Path(directory) / "go").exists():
        time.sleep(0.01)
    return rank


async def drip(*, rank: int, rendezvous_uri: str, directory: str) -> int:
    """Emit an event for each file the test makes, until the one that says go."""
    root, step = Path(directory), 0
    async with open_store(rendezvous_uri) as store, EventWriter(store, f"{rank}-0", flush_s=0.05) as events:
        while not (root / "go").exists():
            if (root / f"step-{step}").exists():
                events.emit("step", step=step, loss=1.0 / (step + 1))
                step += 1
            await anyio.sleep(0.01)
    return rank
