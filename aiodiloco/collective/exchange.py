"""The two ways to the mean. In both, all stages run at once, chunk by chunk.

gather: everyone reads every contribution and forms the whole mean. Two steps after another on the wire.
scatter: each member forms the mean of its own block and publishes it; everyone reads the blocks of the others.

Both encode the mean once and apply the decoded bytes, and both add in rank order, so they give the same bits: which one
ran is a matter of time, not of training.

Nothing is asked for before it is likely there: a peer's contribution once this rank has sent as much of its own, a
chunk of the mean once this rank has published as many. Whoever asks earlier gets a "not found" for the price of a
request. It cannot make a round longer: no round is over before all contributions are there, this rank's included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aiodiloco.codec import HEADER_BYTES, as_tensor, get_codec, mean_wire
from aiodiloco.collective.contribution import Contribution
from aiodiloco.collective.plan import owned_chunks, place_of_mean, ring_order
from aiodiloco.collective.progress import Progress
from aiodiloco.collective.receiving import receive_mean
from aiodiloco.collective.reduction import Reducer

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.round import Round

__all__ = ["Exchange"]


class Exchange:
    """Sends this rank's contribution and obtains the mean, chunk by chunk.

    Attributes:
        mean: Encoded chunks of the mean by index; complete once `run` returned.
        sent: Set once this rank's contribution is whole.
    """

    def __init__(self, round_: Round, payload: Payload, sent: MutableMapping[int, bytes]) -> None:
        self.mean: dict[int, memoryview] = {}
        self.sent = anyio.Event()
        self._round = round_
        self._payload = payload
        num_chunks, position, num_members = len(round_.grid), round_.position, len(round_.members)
        self._scatters = round_.agreement.algorithm == "scatter"
        if self._scatters:
            self._order = ring_order(num_chunks, position, num_members)
            self._mine = owned_chunks(num_chunks, position, num_members)
        else:
            self._order = list(range(num_chunks))
            self._mine = range(num_chunks)
        uses = {index: 1 + (index in self._mine) for index in range(num_chunks)}
        self._contribution = Contribution(round_, payload, uses, sent)
        self._published = Progress()

    async def run(self) -> None:
        """Upload, reduce and download at once, until the whole mean is here. The caller bounds the wait."""
        theirs = iter(index for index in self._order if index not in self._mine)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._upload)
            tg.start_soon(Reducer(self._round, self._contribution).run, self._mine, self._publish)
            for _ in range(self._round.most_in_flight):
                tg.start_soon(self._read_all, theirs)

    def apply(self) -> None:
        """Decode the whole mean into the tensors. For a worker thread; nothing can fail or be cancelled in between."""
        for chunk in self._round.grid:
            body = as_tensor(self.mean.pop(chunk.index)[HEADER_BYTES:])  # its digest was right when it came
            codec, values = get_codec(mean_wire(chunk.codec)), self._payload.view(chunk)
            if values is not None:
                codec.decode(body, values)
                continue
            with self._round.scratch.lend(chunk.numel, codec.dtype) as values:
                codec.decode(body, values)
                self._payload.write(chunk, values)
        self._payload.commit()

    async def under_way(self) -> None:
        """Wait until the first chunk is uploaded: the start of a round is no time for other work."""
        await self._contribution.sent.reach(min(1, len(self._round.grid)))

    async def _upload(self) -> None:
        await self._contribution.upload(self._order)
        self.sent.set()

    async def _publish(self, index: int, mean: memoryview) -> None:
        if self._scatters:
            async with self._round.uploads.admit() as request:
                await self._round.put(self._round.reduced_key(index), mean)
                request.nbytes = len(mean)
        self.mean[index] = mean
        self._published.advance()

    async def _read_all(self, indices: Iterator[int]) -> None:
        round_ = self._round
        for index in indices:
            place = place_of_mean(index, len(round_.grid), len(round_.members))
            await self._published.reach(min(place + 1, len(self._mine)))
            self.mean[index] = (await receive_mean(round_, round_.grid[index])).data
