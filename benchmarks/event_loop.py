"""How long an all-reduce blocks the event loop it runs in: the longest gap between two turns of a 1 ms ticker.

    python benchmarks/event_loop.py [--mib 1024] [--ranks 2] [--wire bf16] [--algorithm scatter]

All ranks run in one process and one event loop over a file store, which is harder on the loop than any deployment. A
second ticker runs beside no work at all, for what the machine itself does to a loop. What importing torch leaves for
the garbage collector is frozen first, as in local replicas: one full collection of it holds every thread for 60 ms.
Writes benchmarks/out/event_loop.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import tempfile
import time
from pathlib import Path

import anyio
import torch

from aiodiloco import FileStore, ObjectStoreAllReduce

TICK_S = 0.001
OUT = Path(__file__).parent / "out"


class Ticker:
    """Notes how late each turn of the loop comes, and how long the loop's own thread computed since the one before.

    The first includes what the machine does to the thread (other processes, the GIL); the second only its own work.
    """

    def __init__(self, tick_s: float = TICK_S) -> None:
        self.tick_s = tick_s
        self.late_s: list[float] = []
        self.busy_s: list[float] = []

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await anyio.sleep(self.tick_s)
            self.late_s.append(time.perf_counter() - began - self.tick_s)
            self.busy_s.append(time.thread_time() - computed)

    def summary(self) -> dict[str, float]:
        """Return the longest gap, its 99th percentile and the longest computation, in ms; and the number of turns."""
        late = sorted(self.late_s)
        return {
            "max_ms": late[-1] * 1e3,
            "p99_ms": late[int(len(late) * 0.99)] * 1e3,
            "max_computing_ms": max(self.busy_s) * 1e3,
            "turns": len(late),
        }


def make_tensors(rank: int, mib: int) -> dict[str, torch.Tensor]:
    """Return `mib` MiB of fp32 that differ by rank."""
    return {f"t{i}": torch.full((1 << 15, mib), float(rank + 1)) for i in range(8)}


def check(tensors: dict[str, torch.Tensor], ranks: int) -> None:
    """Exit unless every element is the mean, to the precision of int8."""
    mean = sum(range(1, ranks + 1)) / ranks
    if any((t - mean).abs().max() > 0.01 * ranks for t in tensors.values()):
        raise SystemExit("the all-reduce gave a wrong mean")


async def measure(args: argparse.Namespace) -> dict[str, object]:
    """Return the gaps while reducing and while idle for as long."""
    busy, idle = Ticker(), Ticker()
    tensors = [make_tensors(rank, args.mib) for rank in range(args.ranks)]
    with tempfile.TemporaryDirectory() as directory:
        async with FileStore(directory) as store, contextlib.AsyncExitStack() as stack:
            options = {"world_size": args.ranks, "wire": args.wire, "algorithm": args.algorithm}
            ranks = [
                await stack.enter_async_context(ObjectStoreAllReduce(store, rank=rank, **options))
                for rank in range(args.ranks)
            ]
            began = time.perf_counter()
            async with anyio.create_task_group() as ticking:
                ticking.start_soon(busy.run)
                async with anyio.create_task_group() as tg:
                    for rank in ranks:
                        tg.start_soon(rank.all_reduce, tensors[rank.rank])
                ticking.cancel_scope.cancel()
            seconds = time.perf_counter() - began
            check(tensors[0], args.ranks)
    with anyio.move_on_after(seconds):
        await idle.run()
    return {**vars(args), "seconds": seconds, "reducing": busy.summary(), "idle": idle.summary()}


def main() -> None:
    """Measure once, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="fp32 MiB per rank, a multiple of 8")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--wire", default="fp32")
    parser.add_argument("--algorithm", default="scatter")
    args = parser.parse_args()
    gc.collect()
    gc.freeze()
    result = anyio.run(measure, args)
    OUT.mkdir(exist_ok=True)
    (OUT / "event_loop.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
