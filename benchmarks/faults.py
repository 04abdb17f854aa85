"""All-reduces through a store that fails all the time: are they right, and how much longer do they take?

    python benchmarks/faults.py [--seeds 30] [--latency 0.03] [--mib 4]

Every combination of 2 and 4 ranks, wire and algorithm runs `--seeds` times over a memory store with the full mix of
faults, and as often without; both with the same latency per request, so that it is not the CPU that is measured. Of
each run the all-reduce is timed, without joining. Every result is compared to the bit. Prints a table, writes
benchmarks/out/faults.json, and exits with 1 if a mean was wrong or the median took more than 3 times as long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import torch

from aiodiloco import AiodilocoError, MemoryStore, ObjectStoreAllReduce
from aiodiloco.codec import as_bytes, get_codec, wire_names
from aiodiloco.testing import Faults, FaultyStore

_OUT = Path(__file__).parent / "out" / "faults.json"
_MIX = {"unavailable": 0.3, "truncated": 0.05, "flipped": 0.01, "lost_reply": 0.1}
_ALLOWED = 3.0
_CHUNK = 16384  # elements: 64 chunks in 4 MiB


async def run_once(
    name: str, world_size: int, faults: Faults, *, seed: int, numel: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the seconds of the slowest rank, each rank's mean as bytes or its error, and the faults injected."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(numel, generator=generator) for _ in range(world_size)]
    stores = [FaultyStore(MemoryStore(name), faults, seed=f"{seed}-{rank}") for rank in range(world_size)]
    outcomes: dict[int, bytes | str] = {}
    seconds: dict[int, float] = {}
    num_joined, all_joined = 0, anyio.Event()

    async def run(rank: int) -> None:
        nonlocal num_joined
        try:
            async with ObjectStoreAllReduce(stores[rank], rank=rank, world_size=world_size, **options) as all_reduce:
                num_joined += 1
                if num_joined == world_size:
                    all_joined.set()
                await all_joined.wait()
                began = anyio.current_time()
                await all_reduce.all_reduce({"w": tensors[rank]})
                seconds[rank] = anyio.current_time() - began
                outcomes[rank] = bytes(as_bytes(tensors[rank]))
        except AiodilocoError as exc:
            outcomes[rank] = f"{type(exc).__name__}: {exc}"
            all_joined.set()

    async with anyio.create_task_group() as tg:
        for rank in range(world_size):
            tg.start_soon(run, rank)
    injected = sum((Counter(store.injected) for store in stores), Counter())
    return {"seconds": max(seconds.values(), default=0.0), "outcomes": outcomes, "injected": dict(injected)}


async def measure(seeds: int, latency_s: float, mib: float) -> list[dict[str, Any]]:
    """Return one record per combination."""
    records = []
    numel = int(mib * 2**20) // 4
    for world_size, wire, algorithm in itertools.product((2, 4), wire_names(), ("gather", "scatter")):
        options = {
            "wire": wire,
            "algorithm": algorithm,
            "chunk_bytes": get_codec(wire).nbytes(_CHUNK),
            "timeout": 120.0,
        }
        both: dict[str, Any] = {"numel": numel, "options": options}
        name = f"{world_size}-{wire}-{algorithm}"
        clean, faulty, right, refused, wrong = [], [], 0, [], 0
        injected: Counter[str] = Counter()
        for seed in range(seeds):
            once = await run_once(f"{name}-{seed}", world_size, Faults(latency_s=latency_s), seed=seed, **both)
            expected = once["outcomes"][0]
            clean.append(once["seconds"])
            faults = Faults(latency_s=latency_s, **_MIX)
            once = await run_once(f"{name}-{seed}-faulty", world_size, faults, seed=seed, **both)
            faulty.append(once["seconds"])
            injected.update(once["injected"])
            for outcome in once["outcomes"].values():
                if isinstance(outcome, str):
                    refused.append(outcome)
                elif outcome == expected:
                    right += 1
                else:
                    wrong += 1
        record = {
            "ranks": world_size,
            "wire": wire,
            "algorithm": algorithm,
            "clean_s": statistics.median(clean),
            "faulty_s": statistics.median(faulty),
            "ratio": statistics.median(f / c for f, c in zip(faulty, clean, strict=True)),
            "worst": max(f / c for f, c in zip(faulty, clean, strict=True)),
            "right": right,
            "refused": refused,
            "wrong": wrong,
            "injected": dict(injected),
        }
        records.append(record)
        print_row(record)
    return records


def print_row(record: dict[str, Any]) -> None:
    """Print one record."""
    print(
        f"{record['ranks']:2} {record['wire']:5} {record['algorithm']:8} {record['clean_s']:7.2f} "
        f"{record['faulty_s']:7.2f} {record['ratio']:6.2f} {record['worst']:6.2f} {record['right']:6} "
        f"{len(record['refused']):8} {record['wrong']:6}",
        flush=True,
    )


def main() -> None:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds per request, on average")
    parser.add_argument("--mib", type=float, default=4, help="payload, MiB of fp32")
    args = parser.parse_args()
    print(" N wire  algo       clean  faulty  ratio  worst  right  refused  wrong")
    records = anyio.run(measure, args.seeds, args.latency, args.mib)
    _OUT.parent.mkdir(exist_ok=True)
    _OUT.write_text(json.dumps({"arguments": vars(args), "mix": _MIX, "records": records}, indent=1))
    slowest = max(record["ratio"] for record in records)
    print(f"wrong: {sum(r['wrong'] for r in records)}; median ratio of the slowest combination: {slowest:.2f}")
    if slowest > _ALLOWED or any(record["wrong"] for record in records):
        sys.exit(f"means must be right, and take at most {_ALLOWED:g} times as long")


if __name__ == "__main__":
    main()
