"""The mean of one chunk: fetched from every member, added in rank order, encoded once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import anyio

from aiodiloco.codec import (
    HEADER_BYTES,
    REDUCED,
    ChunkHeader,
    as_tensor,
    as_values,
    get_codec,
    mean_wire,
    pack_chunk,
)
from aiodiloco.codec.pieces import pieces
from aiodiloco.collective.decider import refuse
from aiodiloco.collective.decision import wait_for_decision
from aiodiloco.collective.plan import place_in_ring
from aiodiloco.collective.receiving import receive_chunk
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from anyio.streams.memory import MemoryObjectReceiveStream
    from torch import Tensor

    from aiodiloco.collective.contribution import Contribution
    from aiodiloco.collective.keys import Member
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.collective.round import Round
    from aiodiloco.collective.scratch import Scratch
__all__ = ["Accumulator", "Reducer"]

_CHUNKS_REDUCED_AT_ONCE = 2  # one waits for its last contribution while the other is added up
_READ_AHEAD = 2  # times the requests in flight: what arrived out of rank order must not hold up what is missing


class Accumulator:
    """Weighted mean of encoded chunks, the same bits on every machine.

    Every step is one correctly rounded elementwise operation, product and sum apart: a fused multiply-add would round
    differently on CPUs with and without it.

    Args:
        codec: Name of the wire format of the contributions.
        total: Room for the sum: (numel,) of the codec's dtype. What it holds does not matter.
        scratch: Lends more where contributions must be decoded before they can be added.
    """

    def __init__(self, codec: str, total: Tensor, scratch: Scratch) -> None:
        self._codec = get_codec(codec)
        self._total = total
        self._scratch = scratch
        self.weight = 0.0

    def add(self, body: Tensor, weight: float) -> None:
        """Add the contribution encoded in `body`, (nbytes,) uint8, with a weight > 0. Order matters to the last bit."""
        is_first, self.weight = not self.weight, self.weight + weight
        if is_first:
            self._decode(body, weight, self._total)
        elif weight == 1.0 and (values := as_values(self._codec, body)) is not None:
            self._add(values)
        else:
            with self._scratch.lend(len(self._total), self._total.dtype) as values:
                self._decode(body, weight, values)
                self._add(values)

    def _decode(self, body: Tensor, weight: float, out: Tensor) -> None:
        self._codec.decode(body, out)
        if weight != 1.0:
            for (piece,) in pieces(out):
                piece.mul_(weight)

    def _add(self, values: Tensor) -> None:
        for total, piece in pieces(self._total, values):
            total.add_(piece)

    def mean(self) -> Tensor:
        """Return the weighted mean, (numel,). Ends the accumulation: the sum is divided in place."""
        for (total,) in pieces(self._total):
            total.div_(self.weight)
        return self._total


class _Opened(NamedTuple):
    """A chunk whose contributions are on their way, in rank order; one's own is not fetched."""

    chunk: Chunk
    arrivals: Mapping[Member, _Arrival]


class Reducer:
    """Reduces chunks of one round, reading peers' chunks ahead of use, but never more than fit the read-ahead.

    Args:
        round_: The round.
        contribution: This rank's own, being sent; None if all contributions are read from the store.
    """

    def __init__(self, round_: Round, contribution: Contribution | None) -> None:
        self._round = round_
        self._contribution = contribution
        self._ahead = anyio.Semaphore(_READ_AHEAD * round_.most_in_flight)

    async def run(self, indices: Iterable[int], publish: Callable[[int, memoryview], Awaitable[None]]) -> None:
        """Call `publish` with the index and the encoded mean of each chunk; in order, but two at a time."""
        send, receive = anyio.create_memory_object_stream[_Opened](math.inf)
        async with anyio.create_task_group() as tg:
            for _ in range(_CHUNKS_REDUCED_AT_ONCE):
                tg.start_soon(self._reduce_all, receive.clone(), publish)
            receive.close()
            async with send:
                for index in indices:
                    # Room is taken chunk by chunk and in rank order, just as it is given back: no deadlock.
                    arrivals = {member: _Arrival() for member in self._round.members}
                    chunk = self._round.grid[index]
                    await send.send(_Opened(chunk, arrivals))
                    for member, arrival in arrivals.items():
                        if not self._has_own(member):
                            await self._ahead.acquire()
                            tg.start_soon(self._fetch, member, chunk, arrival)

    async def _reduce_all(
        self,
        opened: MemoryObjectReceiveStream[_Opened],
        publish: Callable[[int, memoryview], Awaitable[None]],
    ) -> None:
        async with opened:
            async for chunk, arrivals in opened:
                await publish(chunk.index, await self._reduce(chunk, arrivals))

    async def _reduce(self, chunk: Chunk, arrivals: Mapping[Member, _Arrival]) -> memoryview:
        """Return the mean of `chunk` over all members, encoded."""
        with self._round.scratch.lend(chunk.numel, get_codec(chunk.codec).dtype) as total:
            accumulator = Accumulator(chunk.codec, total, self._round.scratch)
            for member, arrival in arrivals.items():
                if self._contribution is not None and self._has_own(member):
                    data = await self._contribution.take(chunk.index)  # no earlier than it must be: it takes memory
                    await self._add(accumulator, (as_tensor(data[HEADER_BYTES:]), self._round.weight))
                    continue
                await self._add(accumulator, await arrival.wait())
                self._ahead.release()
            wire = mean_wire(chunk.codec)
            header = ChunkHeader(wire, chunk.numel, chunk.index, REDUCED, accumulator.weight, self._round.digest)
            with self._round.meter.phase("reduce"):
                return await self._round.in_worker(lambda: pack_chunk(header, accumulator.mean()))

    def _has_own(self, member: Member) -> bool:
        return self._contribution is not None and member == self._round.me

    async def _fetch(self, member: Member, chunk: Chunk, arrival: _Arrival) -> None:
        round_ = self._round
        if self._contribution is not None:
            await self._contribution.sent.reach(self._sent_before(member, chunk.index) + 1)
        _, header, body = await receive_chunk(round_, member, chunk)
        if header.payload != round_.digest:
            await self._refuse(member)
        arrival.set(body, header.weight)

    def _sent_before(self, member: Member, index: int) -> int:
        """Return how many chunks the member sends before this one, about."""
        round_ = self._round
        if round_.agreement.algorithm == "gather":
            return index
        place = place_in_ring(index, len(round_.grid), round_.members.index(member), len(round_.members))
        return min(place, len(round_.grid) - 1)

    async def _refuse(self, member: Member) -> None:
        """End the round on all ranks; or here alone, if it was decided before."""
        round_ = self._round
        if round_.is_elastic:
            await anyio.sleep_forever()  # the decision will leave someone out, and this reduction is begun anew
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
