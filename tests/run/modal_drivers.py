"""A driver of a run on Modal, in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import sys

import aiodiloco


async def main(store: str) -> None:
    executor = aiodiloco.ModalExecutor(app_name="driven", keep=True)
    sleep = "aiodiloco.testing.entrypoints:sleep"
    async with aiodiloco.launch(executor, sleep, 2, store=store, run_id="a-run", timeout=60, lease=1.5) as run:
        print("launched", flush=True)  # noqa: T201 - to the test that runs it
        await run.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
