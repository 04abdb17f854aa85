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


async def launch_and_wait(directory: str) -> None:
    executor = ModalExecutor(app_name="left-behind")
    handles = await executor.launch_replicas(3, work, {"seconds": 1.5})
    (Path(directory) / "handles").write_text("\n".join(handle.to_json() for handle in handles))
    sys.stdout.write("launched\n")
    sys.stdout.flush()
    await executor.collect(handles)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
