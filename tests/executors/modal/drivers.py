"""Scripts that launch on Modal in a process of their own, to be killed or left."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from aiodiloco import ModalExecutor


def work(*, rank: int, seconds: float) -> str:
    """Print and return under which name a container has imported this script."""
    print(f"rank {rank} works", flush=True)  # noqa: T201 - what is tested
    time.sleep(seconds)
    return f"{__name__} {rank} {os.environ.get('MODAL_IS_REMOTE')}"


def reduce_until(*, rank: int, world_size: int, uri: str, stop: str) -> list[float]:
    """Contribute this process's id, again and again until there is a file `stop`; return the mean of each round."""
    import torch

    from aiodiloco import join_sync

    means = []
    with join_sync(uri, rank=rank, world_size=world_size) as replica:
        while True:
            tensors = {"pid": torch.tensor([float(os.getpid())]), "stop": torch.tensor([float(Path(stop).exists())])}
            replica.all_reduce(tensors)
            means.append(tensors["pid"].item())
            if tensors["stop"].item():
                return [float(os.getpid()), *means]


async def launch_and_wait(directory: str) -> None:
    executor = ModalExecutor(app_name="left-behind")
    handles = await executor.launch_replicas(3, work, {"seconds": 1.5})
    (Path(directory) / "handles").write_text("\n".join(handle.to_json() for handle in handles))
    sys.stdout.write("launched\n")
    sys.stdout.flush()
    await executor.collect(handles)


async def train_slowly(*, rank: int, uri: str, rounds: int, checkpoint_every: int | None) -> dict[str, int]:
    """Train something small, slowly enough to be interrupted, and say as which process it ended."""
    import anyio
    import torch

    from aiodiloco import join

    async with join(uri, rank=rank, world_size=1) as replica:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        diloco = replica.diloco(model, optimizer, sync_every=2, checkpoint_every=checkpoint_every)
        for _ in diloco.steps(2 * rounds):
            await anyio.sleep(0.1)
            await diloco.step()
        return {"incarnation": replica.transport.member.incarnation, "rounds": diloco.round}


def never_end(*, rank: int) -> None:
    """Swallow every polite request."""
    print(f"rank {rank} works", flush=True)  # noqa: T201 - what the driver waits for
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


async def collect_and_leave() -> None:
    """End the program as soon as `collect` has returned."""
    executor = ModalExecutor(app_name="left-at-once", grace=1.0)
    handles = await executor.launch_replicas(3, never_end)
    for handle in handles:
        assert await anext(executor.stream_logs(handle, follow=True)) == f"rank {handle.rank} works"
    rows = await executor.collect(handles, timeout=0.01)
    sys.stdout.write(" ".join(row.status for row in rows))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
