"""A run that survives: launch it, watch it, and come back to it by its name.

    python examples/launch_run.py my-run      # again, also after Ctrl-C or kill -9, or in a second terminal at once

The first call launches the run. Another with the same name attaches to it: it watches while the first one lives, drives
on when that is gone, and shows the result when it is over. One replica dies on purpose, and is started again.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiodiloco

STORE = Path(tempfile.gettempdir()) / "aiodiloco-runs"


def work(*, rank: int, incarnation: int, seconds: float) -> str:
    """Work for a while; as rank 1, fail the first time."""
    time.sleep(seconds / 2)
    if rank == 1 and incarnation == 0:
        raise ConnectionError("as if its machine had trouble")
    time.sleep(seconds / 2)
    return f"rank {rank}, process {incarnation}"


async def main(run_id: str) -> None:
    """Launch or attach, print what happens, and end with the results."""
    executor = aiodiloco.LocalProcessExecutor(detach=True)  # replicas that do not end with this very process
    policy = aiodiloco.Respawn(max_restarts=2, backoff=0.5)
    launching = aiodiloco.launch(
        executor, work, 3, store=STORE, timeout=60, policy=policy, args={"seconds": 2.0}, run_id=run_id, lease=None
    )
    async with launching as run:
        async for event in run.events():
            print(f"{event.writer} {event.seq:3d} {event.kind} {dict(event.data)}")
        results = await run.wait()
    aiodiloco.raise_for_failures(results)
    print([result.result for result in results])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else aiodiloco.new_run_id()))
