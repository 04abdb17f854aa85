"""What the parts of one all-reduce share: the plan, who is expected, and metered access to the store."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from aiodiloco.collective.keys import members_digest
from aiodiloco.collective.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.collective.agreement import Agreement
    from aiodiloco.collective.keys import Member, RoundKeys
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.store import Buffer, Store

__all__ = ["Round"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of one fragment, as this rank sees it.

    Attributes:
        me: This rank.
        members: Everyone expected to take part, in rank order.
        digest: Digest of the agreement; every chunk of the round carries it.
        weight: Weight of this rank's contribution, > 0.
        workers: Bounds the threads that encode, decode and reduce.
        concurrency: Requests in flight each way.
    """

    store: Store
    keys: RoundKeys
    me: Member
    members: tuple[Member, ...]
    agreement: Agreement
    digest: bytes
    grid: tuple[Chunk, ...]
    weight: float
    workers: anyio.CapacityLimiter
    concurrency: int
    meter: Meter = dataclasses.field(default_factory=Meter)

    @property
    def position(self) -> int:
        """Index of this rank among the members."""
        return self.members.index(self.me)

    def reduced_key(self, index: int) -> str:
        """Key of a chunk of the mean over the expected members."""
        return self.keys.reduced(members_digest(self.members), index)

    async def put(self, key: str, data: Buffer) -> None:
        """Write an object, counted."""
        with self.meter.request("upload"):
            await self.store.put(key, data)
        self.meter.bytes_sent += len(data)

    async def in_worker(self, compute: Callable[[], T]) -> T:
        """Run `compute` in a worker thread: tensor work never blocks the event loop."""
        return await anyio.to_thread.run_sync(compute, limiter=self.workers)
