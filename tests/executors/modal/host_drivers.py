"""What a program does with an executor, to be run by several hosts."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from aiodiloco import LocalProcessExecutor, ModalExecutor
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from aiodiloco import ServerlessExecutor

EXECUTORS = {"modal": ModalExecutor, "local": LocalProcessExecutor}


async def launch_and_collect(executor: ServerlessExecutor, *, to: int = 0) -> list[object]:
    """Return what two replicas returned."""
    handles = await executor.launch_replicas(2, entrypoints.add, {"to": to})
    rows = await executor.collect(handles, timeout=60)
    return [row.result["sum"] if isinstance(row.result, dict) else row.error for row in rows]


async def main(kind: str) -> None:
    async with EXECUTORS[kind]() as executor:
        sys.stdout.write(f"{await launch_and_collect(executor)} {type(asyncio.get_running_loop()).__module__}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
