"""Requests to the store of each rank, by purpose, for runs of up to 1000 ranks: counted in virtual time, not timed.

    python benchmarks/requests.py 64 256 1000

Tiny tensors, so that what is counted is how ranks find each other, wait and decide. Each request takes 30 ms. Ranks
join within 5 s of each other; their contributions to a round come within 2 s of each other, and in the last round one
rank is 60 s late. A listing counts as one request for each 1000 keys.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections import Counter
from typing import TYPE_CHECKING

import anyio
import torch

from aiodiloco.replica import join
from aiodiloco.store import MemoryStore
from aiodiloco.testing.simulation import run_in_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.store import Buffer

LATENCY_S, PAGE = 0.03, 1000
JOIN_S, SPREAD_S, LATE_S = 5.0, 2.0, 60.0
PHASES = ("join and round 0", "round 1", "round 2, one late", "leave")


class Counting(MemoryStore):
    """A store that takes its time, and counts by phase and purpose."""

    def __init__(self, name: str, counts: Counter[tuple[str, str]], phase: list[str]) -> None:
        super().__init__(name)
        self._counts = counts
        self._phase = phase

    async def _count(self, key: str, num: int = 1) -> None:
        self._counts[self._phase[0], purpose(key)] += num
        await anyio.sleep(LATENCY_S)

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return the object."""
        await self._count(key)
        return await super().get(key, start=start, length=length, into=into)

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object."""
        await self._count(key)
        await super().put(key, data)

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists."""
        await self._count(key)
        return await super().put_if_absent(key, data)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self._count(key)
        await super().delete(key)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order."""
        keys = [key async for key in super().list(prefix, start_after=start_after)]
        await self._count(prefix, max(1, math.ceil(len(keys) / PAGE)))
        for key in keys:
            yield key


def purpose(key: str) -> str:
    """Return what a request is for."""
    if key.startswith("rounds/"):
        last = key.rsplit("/", 1)[-1]
        if last == "decision.json":
            return "decision"
        return "chunks" if last.isdecimal() else "arrivals"
    top = key.split("/", maxsplit=1)[0]
    return top if top in ("members", "heartbeats", "events", "checkpoints") else "other"


@dataclasses.dataclass
class Run:
    """One run, and what it asked of its store."""

    world_size: int
    counts: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    async def main(self) -> None:
        """Join, and make three rounds together."""
        phase, done = [PHASES[0]], Counter[int]()
        chance = random.Random(0)
        together = [anyio.Event() for _ in range(4)]

        async def meet(number: int) -> None:
            """Begin each round together: else the requests of one would count as those of another."""
            done[number] += 1
            if done[number] == self.world_size:
                phase[0] = PHASES[number]
                together[number].set()
            await together[number].wait()

        async def live(rank: int) -> None:
            await anyio.sleep(chance.uniform(0, JOIN_S))
            store = Counting(f"requests-{self.world_size}", self.counts, phase)
            async with join(
                store, rank=rank, world_size=self.world_size, algorithm="scatter", log_capture=False
            ) as replica:
                for number in range(3):
                    await (meet(number) if number else anyio.lowlevel.checkpoint())
                    late = LATE_S if (number, rank) == (2, self.world_size // 2) else chance.uniform(0, SPREAD_S)
                    await anyio.sleep(late if number else 0)
                    await replica.all_reduce({"w": torch.ones(8)})
                await meet(3)

        async with anyio.create_task_group() as tg:
            for rank in range(self.world_size):
                tg.start_soon(live, rank)


def main() -> None:
    """Print a table for each number of ranks."""
    for world_size in [int(arg) for arg in sys.argv[1:]] or [64]:
        run = Run(world_size)
        run_in_virtual_time(run.main)
        purposes = sorted({what for _, what in run.counts})
        sys.stdout.write(f"\n{world_size} ranks: requests per rank\n{'':20}" + "".join(f"{p:>12}" for p in purposes))
        for phase in dict.fromkeys(name for name, _ in run.counts):
            row = "".join(f"{run.counts[phase, what] / world_size:12.1f}" for what in purposes)
            total = sum(n for (name, _), n in run.counts.items() if name == phase) / world_size
            sys.stdout.write(f"\n{phase:20}{row}   total {total:.1f}")
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
