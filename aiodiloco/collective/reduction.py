"""The mean of one chunk: fetched from every member, added in rank order, encoded once."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio

from aiodiloco.codec import (
    HEADER_BYTES,
    REDUCED,
    ChunkHeader,
    as_tensor,
    as_values,
    chunk_nbytes,
    get_codec,
    mean_wire,
    pack_chunk,
    seal_chunk,
)
from aiodiloco.codec.pieces import pieces
from aiodiloco.collective.decider import refuse
from aiodiloco.collective.decision import wait_for_decision
from aiodiloco.collective.plan import place_in_ring
from aiodiloco.collective.receiving import receive_chunk
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

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
        total: Room for the sum: (numel,) of the codec's dtype. What it holds does not matter, unless the first
            contribution lies in this very memory.
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
        if body.data_ptr() != out.data_ptr():
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
    """A chunk whose contributions are on their way.

    Attributes:
        chunk: Which.
        arrivals: By member, in the order in which they are added; one's own is not fetched.
    """

    chunk: Chunk
    arrivals: Mapping[Member, _Arrival]


class Reducer:
    """Reduces chunks of one round, reading peers' chunks ahead of use, but never more than fit the read-ahead.

    Where the values are on the wire as they are added, the first contribution is read into the place of the mean, and
    the others are added to it there.

    Args:
        round_: The round.
        contribution: This rank's own, being sent; None if all contributions are read from the store.
    """

    def __init__(self, round_: Round, contribution: Contribution | None) -> None:
        self._round = round_
        self._contribution = contribution
        most = round_.most_in_flight
        self._ahead = anyio.Semaphore(min(_READ_AHEAD * most, most + len(round_.members)))

    async def run(self, indices: Iterable[int], publish: Callable[[int, memoryview], Awaitable[None]]) -> None:
        """Call `publish` with the index and the encoded mean of each chunk; in order, but two at a time."""
        send, receive = anyio.create_memory_object_stream[_Opened](math.inf)
        async with anyio.create_task_group() as tg:
            for _ in range(_CHUNKS_REDUCED_AT_ONCE):
                tg.start_soon(self._reduce_all, receive.clone(), publish)
            receive.close()
            async with send:
                for index in indices:
                    # Room is taken chunk by chunk and in the order in which it is given back: no deadlock.
                    chunk = self._round.grid[index]
                    arrivals = {member: _Arrival() for member in self._order_of_addition()}
                    await send.send(_Opened(chunk, arrivals))
                    place = None if self._sum_in_place(chunk) is None else self._round.buffers.of_mean(index)
                    for member, arrival in arrivals.items():
                        if not self._has_own(member):
                            await self._ahead.acquire()
                            tg.start_soon(self._fetch, member, chunk, arrival, place)
                        place = None

    def _order_of_addition(self) -> list[Member]:
        """Return the members in rank order; but where one's own contribution is the first, it comes second.

        The sum of the first two is the same either way, and what is fetched first can be added to where it lies.
        """
        first, *rest = self._round.members
        return [rest[0], first, *rest[1:]] if rest and self._has_own(first) else [first, *rest]

    async def _reduce_all(
        self,
        opened: MemoryObjectReceiveStream[_Opened],
        publish: Callable[[int, memoryview], Awaitable[None]],
    ) -> None:
        async with opened:
            async for chunk, arrivals in opened:
                await publish(chunk.index, await self._reduce(chunk, arrivals))

    async def _reduce(self, chunk: Chunk, arrivals: Mapping[Member, _Arrival]) -> memoryview:
        """Return the mean of `chunk` over all members, encoded, in its place in the round's buffers."""
        data, in_place = self._encoded_mean(chunk), self._sum_in_place(chunk)

        def finish() -> None:
            mean = accumulator.mean()
            header = ChunkHeader(
                mean_wire(chunk.codec), chunk.numel, chunk.index, REDUCED, accumulator.weight, self._round.digest
            )
            if in_place is None:
                pack_chunk(header, mean, data)
            else:
                seal_chunk(header, data)

        with contextlib.ExitStack() as stack:
            total = in_place
            if total is None:
                dtype = get_codec(chunk.codec).dtype
                total = stack.enter_context(self._round.scratch.lend(chunk.numel, dtype))
            accumulator = Accumulator(chunk.codec, total, self._round.scratch)
            await self._add_all(accumulator, chunk, arrivals, finish)
        return data

    async def _add_all(
        self, accumulator: Accumulator, chunk: Chunk, arrivals: Mapping[Member, _Arrival], finish: Callable[[], None]
    ) -> None:
        """Add the contributions in order, together what is there together; after the last, `finish`."""
        remaining = deque(arrivals.items())
        while remaining:
            async with contextlib.AsyncExitStack() as stack:
                batch = [await self._take(*remaining.popleft(), chunk, stack)]
                while remaining and (self._has_own(remaining[0][0]) or remaining[0][1].is_here):
                    batch.append(await self._take(*remaining.popleft(), chunk, stack))

                def compute(batch: Sequence[tuple[Tensor, float]] = batch, *, is_last: bool = not remaining) -> None:
                    for body, weight in batch:
                        accumulator.add(body, weight)
                    if is_last:
                        finish()

                with self._round.meter.phase("reduce"):
                    await self._round.in_worker(compute)

    async def _take(
        self, member: Member, arrival: _Arrival, chunk: Chunk, stack: contextlib.AsyncExitStack
    ) -> tuple[Tensor, float]:
        """Return what to add of a member; what it takes is given back when the stack is unwound."""
        if self._contribution is not None and self._has_own(member):
            data = await stack.enter_async_context(self._contribution.lend(chunk.index))  # no earlier: it takes memory
            return as_tensor(data[HEADER_BYTES:]), self._round.weight
        body, weight, piece = await arrival.wait()
        stack.callback(self._ahead.release)
        if piece is not None:
            stack.callback(self._round.buffers.give_back, piece)
        return body, weight

    def _encoded_mean(self, chunk: Chunk) -> memoryview:
        nbytes = chunk_nbytes(get_codec(mean_wire(chunk.codec)), chunk.numel)
        return self._round.buffers.of_mean(chunk.index)[:nbytes]

    def _sum_in_place(self, chunk: Chunk) -> Tensor | None:
        """Return the values of the encoded mean, (chunk.numel,), if it and the contributions hold them as they are."""
        if mean_wire(chunk.codec) != chunk.codec:
            return None
        return as_values(get_codec(chunk.codec), as_tensor(self._encoded_mean(chunk)[HEADER_BYTES:]))

    def _has_own(self, member: Member) -> bool:
        return self._contribution is not None and member == self._round.me

    async def _fetch(self, member: Member, chunk: Chunk, arrival: _Arrival, place: memoryview | None) -> None:
        round_ = self._round
        if self._contribution is not None:
            await self._contribution.sent.reach(self._sent_before(member, chunk.index) + 1)
        data, header, body = await receive_chunk(round_, member, chunk, place)
        if header.payload != round_.digest:
            await self._refuse(member)
        arrival.set(body, header.weight, data if place is None else None)

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


class _Arrival:
    """A place for one message, waited for by one task."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._value: tuple[Tensor, float, memoryview | None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether `wait` returns at once."""
        return self._event.is_set()

    def set(self, body: Tensor, weight: float, piece: memoryview | None) -> None:
        """Deliver what to add, and the piece of memory it lies in, if that is to be given back."""
        self._value = (body, weight, piece)
        self._event.set()

    async def wait(self) -> tuple[Tensor, float, memoryview | None]:
        """Return what was set."""
        await self._event.wait()
        value, self._value = self._value, None
        assert value is not None
        return value
