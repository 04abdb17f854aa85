"""The mean of one chunk: fetched from every member, added in rank order, encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import torch

from aiodiloco.codec import REDUCED, ChunkHeader, get_codec, mean_wire, pack_chunk, unpack_chunk
from aiodiloco.codec.pieces import pieces
from aiodiloco.collective.decision import refuse, wait_for_decision
from aiodiloco.collective.receiving import receive_chunk
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.collective.contribution import Contribution
    from aiodiloco.collective.keys import Member
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.collective.round import Round

__all__ = ["Accumulator", "Reducer"]


class Accumulator:
    """Weighted mean of encoded chunks, the same bits on every machine.

    Every step is one correctly rounded elementwise operation, product and sum apart: a fused multiply-add would round
    differently on CPUs with and without it.

    Args:
        codec: Name of the wire format of the contributions.
        numel: Elements in the chunk.
    """

    def __init__(self, codec: str, numel: int) -> None:
        self._codec = get_codec(codec)
        self._numel = numel
        self._sum: Tensor | None = None  # made by the first `add`: fresh memory is too slow for the event loop
        self.weight = 0.0

    def add(self, body: Tensor, weight: float) -> None:
        """Add the contribution encoded in `body`, (nbytes,) uint8, with a weight > 0. Order matters to the last bit."""
        values = torch.empty(self._numel, dtype=self._codec.dtype)
        self._codec.decode(body, values)
        if weight != 1.0:
            for (piece,) in pieces(values):
                piece.mul_(weight)
        self.weight += weight
        if self._sum is None:
            self._sum = values
            return
        for total, piece in pieces(self._sum, values):
            total.add_(piece)

    def mean(self) -> Tensor:
        """Return the weighted mean, (numel,). Ends the accumulation: the sum is divided in place."""
        assert self._sum is not None
        for (total,) in pieces(self._sum):
            total.div_(self.weight)
        return self._sum


class Reducer:
    """Reduces chunks of one round, reading peers' chunks ahead of use but never more than the round's concurrency."""

    def __init__(self, round_: Round, contribution: Contribution) -> None:
        self._round = round_
        self._contribution = contribution
        self._in_memory = anyio.Semaphore(round_.concurrency)

    async def reduce(self, chunk: Chunk) -> memoryview:
        """Return the mean of `chunk` over all members, encoded."""
        accumulator = Accumulator(chunk.codec, chunk.numel)
        arrivals = {member: _Arrival() for member in self._round.members}
        async with anyio.create_task_group() as tg:
            # Started in rank order, so the permits go to those that are added first: no deadlock between chunks.
            for member, arrival in arrivals.items():
                tg.start_soon(self._fetch, member, chunk, arrival)
            for arrival in arrivals.values():
                await self._add(accumulator, await arrival.wait())
                self._in_memory.release()
        wire = mean_wire(chunk.codec)
        header = ChunkHeader(wire, chunk.numel, chunk.index, REDUCED, accumulator.weight, self._round.digest)
        with self._round.meter.phase("reduce"):
            return await self._round.in_worker(lambda: pack_chunk(header, accumulator.mean()))

    async def _fetch(self, member: Member, chunk: Chunk, arrival: _Arrival) -> None:
        await self._in_memory.acquire()
        round_ = self._round
        if member == round_.me:
            data = await self._contribution.take(chunk.index)
            header, body = await round_.in_worker(lambda: unpack_chunk(data))
        else:
            _, header, body = await receive_chunk(round_, member, chunk)
        if header.payload != round_.digest:
            await self._refuse(member)
        arrival.set(body, header.weight)

    async def _refuse(self, member: Member) -> None:
        """End the round on all ranks; or here alone, if it was decided before."""
        round_ = self._round
        await refuse(round_.store, round_.keys, round_.members, round_.meter)
        await wait_for_decision(round_.store, round_.keys, round_.meter)
        raise CollectiveError(
            f"round {round_.keys.round} of fragment {round_.keys.fragment} was decided, but holds a contribution of "
            f"rank {member.rank} to another all-reduce: do all ranks make the same calls in the same order?"
        )

    async def _add(self, accumulator: Accumulator, arrived: tuple[Tensor, float]) -> None:
        with self._round.meter.phase("reduce"):
            await self._round.in_worker(lambda: accumulator.add(*arrived))


class _Arrival:
    """A place for one decoded message, waited for by one task."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._value: tuple[Tensor, float] | None = None

    def set(self, body: Tensor, weight: float) -> None:
        self._value = (body, weight)
        self._event.set()

    async def wait(self) -> tuple[Tensor, float]:
        await self._event.wait()
        value, self._value = self._value, None
        assert value is not None
        return value
