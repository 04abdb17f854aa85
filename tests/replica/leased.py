"""Entrypoints that join a run with a lease and do not end by themselves."""

# ruff: noqa: ASYNC240, ASYNC251 - replicas that do what they should not

from __future__ import annotations

import time
from pathlib import Path

import anyio

import aiodiloco


def by_rank(*, rank: int, rendezvous_uri: str, world_size: int, directory: str, kinds: list[str]) -> None:
    """Join in the way that `kinds` names for this rank, say so in a file, and go on forever."""
    ready = Path(directory) / f"{rank}.ready"
    KINDS[kinds[rank]](rank=rank, rendezvous_uri=rendezvous_uri, world_size=world_size, ready=ready)


def _async_waiting(*, ready: Path, **where: object) -> None:
    async def wait() -> None:
        async with aiodiloco.join(**where):
            ready.touch()
            await anyio.sleep_forever()

    anyio.run(wait)


def _async_blocking_the_loop(*, ready: Path, **where: object) -> None:
    async def block() -> None:
        async with aiodiloco.join(**where):
            ready.touch()
            time.sleep(600)

    anyio.run(block)


def _async_told_its_incarnation(*, ready: Path, **where: object) -> None:
    async def wait() -> None:
        async with aiodiloco.join(**where, incarnation=0):
            ready.touch()
            await anyio.sleep_forever()

    anyio.run(wait)


def _sync_stepping(*, ready: Path, **where: object) -> None:
    import torch

    with aiodiloco.join_sync(**where) as replica:
        model = torch.nn.Linear(1, 1)
        diloco = replica.diloco(model, torch.optim.SGD(model.parameters(), lr=0.1), sync_every=10**9)
        ready.touch()
        while True:
            time.sleep(0.01)
            diloco.step()


def _sync_in_a_long_step(*, ready: Path, **where: object) -> None:
    with aiodiloco.join_sync(**where):
        ready.touch()
        time.sleep(600)


def _sync_waiting_for_a_round(*, ready: Path, **where: object) -> None:
    import torch

    with aiodiloco.join_sync(**where) as replica:
        ready.touch()
        replica.all_reduce({"x": torch.zeros(1)})


KINDS = {
    "async, waiting": _async_waiting,
    "async, blocking the loop": _async_blocking_the_loop,
    "async, told its incarnation": _async_told_its_incarnation,
    "sync, stepping": _sync_stepping,
    "sync, in a long step": _sync_in_a_long_step,
    "sync, waiting for a round": _sync_waiting_for_a_round,
}
