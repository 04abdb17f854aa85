"""Replicas, and a driver, whose wall clocks are wrong: `python -m tests.run.clocks …` from the repository."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.run.wrong_clock import set_wall_clock

if __name__ == "__main__":
    set_wall_clock(float(sys.argv[3]))  # before anything of the library's is imported

import anyio

import aiodiloco

HOUR_S = 3600.0
N_REPLICAS = 3
TTL_S = 1.5
STEPS, SYNC_EVERY = 24, 4
_DIES_AT = 14


def train(
    *, rank: int, world_size: int, rendezvous_uri: str, incarnation: int, off_s: list[float], dies: int | None
) -> list[float]:
    """Train with a wrong clock, which jumps to the opposite halfway; return the weights.

    Rank `dies` is killed once, and comes back with a clock that is wrong the other way.
    """
    from tests import training

    wrong_by_s = off_s[rank] if incarnation == 0 else -off_s[rank]
    set_wall_clock(wrong_by_s)
    model, optimizer = training.linear()
    with aiodiloco.join_sync(
        rendezvous_uri, rank=rank, world_size=world_size, incarnation=incarnation, log_capture=False
    ) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=SYNC_EVERY, wire="bf16", checkpoint_every=2)
        for step in diloco.steps(STEPS):
            if step == STEPS // 2:
                set_wall_clock(-wrong_by_s)
            if (step, rank, incarnation) == (_DIES_AT, dies, 0):
                os.kill(os.getpid(), signal.SIGKILL)
            diloco.step(loss=training.step_on(model, optimizer, rank, step), tokens=8)
    return training.weights(model)


def wait_forever(*, rank: int, world_size: int, rendezvous_uri: str, directory: str, off_s: list[float]) -> None:
    """Join with a wrong clock, which then jumps again and again, and stay until the driver is gone."""
    import torch

    set_wall_clock(off_s[rank])
    with aiodiloco.join_sync(rendezvous_uri, rank=rank, world_size=world_size) as replica:
        threading.Thread(target=_jump_forever, args=(off_s[rank],), daemon=True).start()
        (Path(directory) / f"{rank}.joined").touch()
        if rank == 0:
            time.sleep(600)
        replica.all_reduce({"w": torch.zeros(1)})


def _jump_forever(off_s: float) -> None:
    while True:
        time.sleep(TTL_S / 10)
        off_s = -off_s
        set_wall_clock(off_s)


async def drive(directory: str, store: str, off_s: list[float]) -> None:
    """Launch replicas that wait, and never end."""
    executor = aiodiloco.LocalProcessExecutor(
        root=f"{directory}/executor", detach=True, preload=["torch", "aiodiloco.replica"]
    )
    launching = aiodiloco.launch(
        executor,
        "tests.run.clocks:wait_forever",
        N_REPLICAS,
        store=store,
        run_id="a-run",
        timeout=600,
        lease=TTL_S,
        args={"directory": directory, "off_s": off_s},
    )
    async with launching as run:
        await run.wait()


if __name__ == "__main__":
    anyio.run(drive, sys.argv[1], sys.argv[2], [float(value) for value in sys.argv[4:]])
