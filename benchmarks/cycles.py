"""What a thousand launches that are cancelled leave behind: nothing.

    python benchmarks/cycles.py [--cycles 1000] [--backend local|modal] [--replicas 2]

Each cycle launches a run and cancels it, at a moment from before its record to after its start (0 to 100 ms after the
call; six times that on Modal).
Tasks, threads, descriptors, processes and temporary files are counted after a few cycles,
at the end, and again after the executor is closed. Runs that were recorded and have no result (cancelled in the very
moment of recording) are reaped, and counted. On Modal, which is the loopback control plane in this process, also calls
that have not ended, containers, and TCP connections. Ends with exit code 1 if anything has grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil

from aiodiloco import LocalProcessExecutor, launch, reap
from aiodiloco.testing import entrypoints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiodiloco.executors import Executor

WARM_UP = 5
LEASE_S = 1.5
SETTLE_S = 20.0


@dataclasses.dataclass(frozen=True)
class Count:
    """What there is of what could be left."""

    tasks: int
    threads: int
    descriptors: int
    processes: int
    connections: int
    temporary: int
    partial: int
    calls: int
    containers: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where cycles run: the executor, and how many calls and containers its backend has alive."""

    executor: Executor
    longest_s: float
    count_calls: Callable[[], int] = lambda: 0
    count_containers: Callable[[], int] = lambda: 0


@contextlib.asynccontextmanager
async def local(directory: Path) -> AsyncIterator[Place]:
    """Replicas as processes of this machine."""
    async with LocalProcessExecutor(root=directory / "local", preload=["aiodiloco.testing.entrypoints"]) as executor:
        yield Place(executor, longest_s=0.1)


@contextlib.asynccontextmanager
async def modal(directory: Path) -> AsyncIterator[Place]:
    """Replicas as containers of the loopback control plane; every one is fresh, so that none may be left."""
    from aiodiloco import ModalExecutor
    from aiodiloco.testing.modal import LoopbackModal

    del directory
    preload = ["aiodiloco.executors.modal.replica", "aiodiloco.testing.entrypoints"]
    async with LoopbackModal(preload=preload, idle_s=0) as plane:
        client = await plane.client()
        async with ModalExecutor(client=client, grace=0.1) as executor:
            alive = lambda: sum(call.is_alive for call in plane.calls())  # noqa: E731
            yield Place(executor, 0.6, alive, lambda: len(plane.containers()))
        await client.close.aio()


async def cycle(place: Place, store: Path, after_s: float, replicas: int) -> None:
    """Launch a run, and cancel it so long after the call."""
    with anyio.move_on_after(after_s):
        async with launch(place.executor, entrypoints.sleep, replicas, store=store, timeout=60, lease=LEASE_S) as run:
            await run.wait()


def count(place: Place, directory: Path) -> Count:
    """Count what there is now."""
    this = psutil.Process()
    return Count(
        tasks=len(asyncio.all_tasks()),
        threads=this.num_threads(),
        descriptors=this.num_fds(),
        processes=len(this.children(recursive=True)),
        connections=len(this.net_connections("tcp")),
        temporary=len(list((directory / "tmp").iterdir())),
        partial=len([path for path in directory.rglob(".*") if "tmp" not in path.parts]),
        calls=place.count_calls(),
        containers=place.count_containers(),
    )


async def settled(place: Place, directory: Path, least: Count | None) -> Count:
    """Count when nothing is more than `least` any more, or 20 s later: what is killed takes a moment to go."""
    latest = time.monotonic() + SETTLE_S
    while True:
        now = count(place, directory)
        if time.monotonic() > latest or (least is not None and not grown(least, now)):
            return now
        if least is None and now.calls == now.containers == 0:
            return now
        await anyio.sleep(0.1)


def grown(before: Count, after: Count) -> dict[str, tuple[int, int]]:
    """Return what there is more of than before."""
    pairs = {
        field.name: (getattr(before, field.name), getattr(after, field.name)) for field in dataclasses.fields(Count)
    }
    return {name: (was, now) for name, (was, now) in pairs.items() if now > was}


async def main(cycles: int, backend: str, replicas: int, directory: Path) -> bool:
    """Run the cycles and print what was counted; return whether nothing has grown."""
    store, chance, began = directory / "store", random.Random(0), time.monotonic()
    before_all = count(Place(None, 0.0), directory)  # type: ignore[arg-type]
    async with {"local": local, "modal": modal}[backend](directory) as place:
        for _ in range(WARM_UP):
            await cycle(place, store, 5.0, replicas)
        before = await settled(place, directory, None)
        for _ in range(cycles):
            await cycle(place, store, chance.uniform(0, place.longest_s), replicas)
        seconds = time.monotonic() - began
        after = await settled(place, directory, before)
        reaped = await reap(store, place.executor)
        after_reaping = await settled(place, directory, before)
    runs = list((store / "runs").iterdir())
    recorded = [run for run in runs if (run / "run.json").exists()]
    open_runs = [run.name for run in recorded if not (run / "result.json").exists()]
    closed = count(Place(None, 0.0), directory)  # type: ignore[arg-type]
    print(f"{cycles} cycles on {backend}, {replicas} replicas each, in {seconds:.0f} s")
    print(f"{'':14}{'before':>8}{'after':>8}{'closed':>8}")
    for field in dataclasses.fields(Count):
        print(f"{field.name:14}" + "".join(f"{getattr(one, field.name):8}" for one in (before, after, closed)))
    print(f"{len(recorded)} runs were recorded; {len(reaped)} were reaped; {len(open_runs)} have no result")
    left = {**grown(before, after), **grown(before, after_reaping)}
    left.pop("threads", None)  # workers wait for more work for a while; there must be none of them in the end
    left |= {name: pair for name, pair in grown(before_all, closed).items() if name in ("processes", "temporary")}
    if closed.threads > before.threads:
        left["threads"] = before.threads, closed.threads
    is_clean = not left and not open_runs
    print("nothing is left" if is_clean else f"LEFT: {left} {open_runs} {closed}")
    return is_clean


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--backend", choices=["local", "modal"], default="local")
    parser.add_argument("--replicas", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="cycles-") as name:
        (Path(name) / "tmp").mkdir()
        tempfile.tempdir = str(Path(name) / "tmp")  # of this process: whatever it leaves there is seen
        is_clean = asyncio.run(main(arguments.cycles, arguments.backend, arguments.replicas, Path(name)))
    sys.exit(0 if is_clean else 1)
