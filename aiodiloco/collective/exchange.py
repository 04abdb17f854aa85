"""The two ways to the mean. In both, all stages run at once, chunk by chunk.

gather: everyone reads every contribution and forms the whole mean. Two steps after another on the wire.
scatter: each member forms the mean of its own block and publishes it; everyone reads the blocks of the others.

Both encode the mean once and apply the decoded bytes, and both add in rank order, so they give the same bits: which one
ran is a matter of time, not of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from aiodiloco.codec import get_codec, mean_wire, unpack_chunk
from aiodiloco.collective.contribution import Contribution
from aiodiloco.collective.plan import owned_chunks, ring_order
from aiodiloco.collective.receiving import receive_mean
from aiodiloco.collective.reduction import Reducer

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.round import Round

__all__ = ["Exchange"]

_CHUNKS_REDUCED_AT_ONCE = 2  # one waits for its last contribution while the other is added up


class Exchange:
    """Sends this rank's contribution and obtains the mean, chunk by chunk.

    Attributes:
        mean: Encoded chunks of the mean by index; complete once `run` returned.
    """

    def __init__(self, round_: Round, payload: Payload, sent: MutableMapping[int, bytes]) -> None:
        self.mean: dict[int, memoryview] = {}
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
        self._reducer = Reducer(round_, self._contribution)

    async def run(self) -> None:
        """Upload, reduce and download at once, until the whole mean is here. The caller bounds the wait."""
        mine = iter(self._mine)
        theirs = iter(index for index in self._order if index not in self._mine)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._contribution.upload, self._order)
            for _ in range(_CHUNKS_REDUCED_AT_ONCE):
                tg.start_soon(self._reduce_all, mine)
            for _ in range(self._round.concurrency):
                tg.start_soon(self._read_all, theirs)

    def apply(self) -> None:
        """Decode the whole mean into the tensors. For a worker thread; nothing can fail or be cancelled in between."""
        for chunk in self._round.grid:
            _, body = unpack_chunk(self.mean.pop(chunk.index))
            values = self._payload.empty(chunk)
            get_codec(mean_wire(chunk.codec)).decode(body, values)
            self._payload.write(chunk, values)
        self._payload.commit()

    async def _reduce_all(self, indices: Iterator[int]) -> None:
        for index in indices:
            mean = await self._reducer.reduce(self._round.grid[index])
            if self._scatters:
                await self._round.put(self._round.reduced_key(index), mean)
            self.mean[index] = mean

    async def _read_all(self, indices: Iterator[int]) -> None:
        round_ = self._round
        for index in indices:
            self.mean[index] = (await receive_mean(round_, round_.grid[index])).data
