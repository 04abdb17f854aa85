"""What the parts of one all-reduce share: the plan, who is expected, and metered access to the store."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, TypeVar

from aiodiloco.collective.buffers import Buffers
from aiodiloco.collective.keys import members_digest
from aiodiloco.collective.meter import AllReduceReport, Meter
from aiodiloco.collective.plan import Link, owned_chunks
from aiodiloco.collective.scratch import Scratch
from aiodiloco.collective.window import AdmittedReads, Window
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import anyio

    from aiodiloco.collective.agreement import Agreement
    from aiodiloco.collective.keys import Member, RoundKeys
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.store import Buffer, Store

__all__ = ["Round"]

T = TypeVar("T")

_TELLING_BYTES = 4 << 20  # less is over before a connection has found its speed


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of one fragment, as this rank sees it.

    Attributes:
        me: This rank.
        members: Over whom the mean is formed, in rank order: those expected, and once it is decided, those decided.
        agreement_json: The agreement as it is stored.
        digest: Digest of that; every chunk of the round carries it.
        weight: Weight of this rank's contribution, > 0.
        workers: Bounds the threads that encode, decode and reduce.
        concurrency: The most requests for chunks in flight each way.
        is_elastic: Whether the round can do without some of the members.
        link: What this rank measured in earlier rounds, for the others to know.
    """

    store: Store
    keys: RoundKeys
    me: Member
    members: tuple[Member, ...]
    agreement: Agreement
    agreement_json: bytes
    digest: bytes
    grid: tuple[Chunk, ...]
    weight: float
    workers: anyio.CapacityLimiter
    concurrency: int
    is_elastic: bool
    link: Link | None = None
    meter: Meter = dataclasses.field(default_factory=Meter)
    scratch: Scratch = dataclasses.field(default_factory=Scratch)

    @functools.cached_property
    def position(self) -> int | None:
        """Index of this rank among the members; None if it is not one of them."""
        return self.members.index(self.me) if self.me in self.members else None

    @property
    def owned(self) -> range:
        """The chunks this rank reduces when the members scatter them; none if it is not a member."""
        if self.position is None:
            return range(0)
        return owned_chunks(len(self.grid), self.position, len(self.members))

    @functools.cached_property
    def members_digest(self) -> str:
        """Name of the expected membership, part of the keys of the mean."""
        return members_digest(self.members)

    @functools.cached_property
    def buffers(self) -> Buffers:
        """Memory for encoded chunks."""
        return Buffers(self.grid)

    @functools.cached_property
    def most_in_flight(self) -> int:
        """Requests for chunks in flight each way, at most: an eighth of them, so that memory stays bounded."""
        return min(self.concurrency, max(2, len(self.grid) // 8))

    @functools.cached_property
    def uploads(self) -> Window:
        """Admits chunks on their way to the store."""
        return Window(self.most_in_flight)

    @functools.cached_property
    def downloads(self) -> Window:
        """Admits chunks on their way from the store: of fp32, which are read into their place in the mean, more."""
        times = 2 if self.agreement.wire == "fp32" else 1
        return Window(min(self.concurrency, times * self.most_in_flight))

    @functools.cached_property
    def chunks(self) -> AdmittedReads:
        """The store, to read chunks from."""
        return AdmittedReads(self.store, self.downloads, self.buffers)

    def reduced_key(self, index: int) -> str:
        """Key of a chunk of the mean over the expected members."""
        return self.keys.reduced(self.members_digest, index)

    async def put(self, key: str, data: Buffer) -> None:
        """Write an object, counted."""
        with self.meter.request("upload"):
            await self.store.put(key, data)
        self.meter.bytes_sent += len(data)

    async def in_worker(self, compute: Callable[[], T]) -> T:
        """Run `compute` in a worker thread: tensor work never blocks the event loop. Cancelled, wait for its end."""
        return await run_in_worker(lambda _: compute(), self.workers, stop_wait_s=math.inf)  # a computation ends

    def measured(self) -> Link | None:
        """Return what this round showed of the way to the store, the slower direction; None if too little moved."""
        rates = [w.nbytes / w.busy_s for w in (self.uploads, self.downloads) if w.nbytes >= _TELLING_BYTES and w.busy_s]
        return Link(self.meter.shortest_s, min(rates)) if rates else None

    def report(self, total_s: float, excluded: Mapping[Member, str], world_size: int) -> AllReduceReport:
        """Return what the round cost this rank so far, `total_s` seconds after it began."""
        present = {member.rank for member in self.members}
        return AllReduceReport(
            round=self.keys.round,
            fragment=self.keys.fragment,
            members=self.members,
            included=self.position is not None,
            absent=tuple(rank for rank in range(world_size) if rank not in present),
            excluded={str(member): why for member, why in excluded.items()},
            settings=dict(self.agreement.settings),
            algorithm=self.agreement.algorithm,
            num_chunks=len(self.grid),
            bytes_sent=self.meter.bytes_sent,
            bytes_received=self.meter.bytes_received,
            requests=self.meter.requests,
            seconds={"total": total_s, **self.meter.seconds},
            link=self.measured(),
        )
