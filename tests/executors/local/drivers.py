"""Scripts that launch local replicas in a process of their own, to be killed, interrupted or left."""

# ruff: noqa: T201 - scripts that speak to the test that runs them

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

from aiodiloco.executors import LocalProcessExecutor


def sleep_with_child(*, rank: int, directory: str) -> None:
    """Start a child and a grandchild that leaves the process group, say so in a file, sleep."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (Path(directory) / f".{rank}").write_text(f"{os.getpid()} {child.pid} {orphan.pid}")
    (Path(directory) / f".{rank}").rename(Path(directory) / f"{rank}.pids")
    time.sleep(600)


def from_main(*, rank: int, shout: bool) -> str:
    return f"{__name__} {rank} {shout} {Path.cwd().name}"


async def launch_and_wait(root: str, directory: str, detach: str) -> None:
    executor = LocalProcessExecutor(root=root, detach=detach == "detach")
    handles = await executor.launch_replicas(3, sleep_with_child, {"directory": directory})
    (Path(directory) / "handles").write_text("\n".join(handle.to_json() for handle in handles))
    print("launched", flush=True)
    await executor.collect(handles)


async def launch_and_fork(root: str, directory: str, lose: str) -> None:
    executor = LocalProcessExecutor(root=root)
    handles = await executor.launch_replicas(1, sleep_with_child, {"directory": directory})
    if lose == "lose":
        executor = LocalProcessExecutor(root=root)
        gc.collect()
    _fork()
    print("launched", flush=True)
    await executor.collect(handles)


def _fork() -> None:
    """Leave a child that lives on, as multiprocessing does."""
    if os.fork() == 0:
        time.sleep(600)


async def launch_forever(root: str) -> None:
    executor = LocalProcessExecutor(root=root)
    while True:
        handles = await executor.launch_replicas(16, sleep)
        print("launched", flush=True)
        for handle in handles:
            await executor.cancel(handle)


def sleep(*, rank: int) -> None:
    time.sleep(600)


async def launch_from_main(root: str) -> None:
    async with LocalProcessExecutor(root=root) as executor:
        rows = await executor.collect(await executor.launch_replicas(2, from_main, {"shout": True}), timeout=30)
        print(*(row.result or row.error for row in rows), sep="\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
