"""The two ways to the mean. In both, all stages run at once, chunk by chunk.

gather: everyone reads every contribution and forms the whole mean. Two steps after another on the wire.
scatter: each member forms the mean of its own block and publishes it; everyone reads the blocks of the others.

Both encode the mean once and apply the decoded bytes, and both add in rank order, so they give the same bits: which one
ran is a matter of time, not of training.

Nothing is asked for before it is likely there: a peer's contribution once this rank has sent as much of its own, a
chunk of the mean once this rank has published as many. Whoever asks earlier gets a "not found" for the price of a
request. It cannot make a round longer: no round is over before all contributions are there, this rank's included.

An owner that dies before it has published its block holds nobody: contributions are objects, so anyone can form its
part of the mean, and whoever does writes the same bytes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import anyio

from aiodiloco.codec import HEADER_BYTES, as_tensor, get_codec, mean_wire
from aiodiloco.collective.contribution import Contribution
from aiodiloco.collective.decider import Own
from aiodiloco.collective.owners import Owners
from aiodiloco.collective.plan import owner_of, place_of_mean, ring_order
from aiodiloco.collective.progress import Progress
from aiodiloco.collective.receiving import receive_mean
from aiodiloco.collective.reduction import Reducer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, MutableMapping

    from aiodiloco.collective.keys import Member
    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.round import Round

__all__ = ["Exchange"]


class Exchange:
    """Obtains the mean over the round's members, chunk by chunk; sends this rank's contribution, unless that is sent.

    Args:
        round_: The round, with the members to form the mean over.
        payload: What is contributed, and where the mean goes.
        sent: Headers of chunks sent before, see `Contribution`; None to send nothing: the contribution is there, or
            there is none.

    Attributes:
        mean: Encoded chunks of the mean by index; complete once `run` returned.
        sent: Set once this rank's contribution is whole.
    """

    def __init__(self, round_: Round, payload: Payload, sent: MutableMapping[int, bytes] | None) -> None:
        self.mean: dict[int, memoryview] = {}
        self.sent = anyio.Event()
        self.round = round_
        self._payload = payload
        num_chunks, num_members = len(round_.grid), len(round_.members)
        self._scatters = round_.agreement.algorithm == "scatter"
        self._mine = round_.owned if self._scatters else range(num_chunks)
        if self._scatters and round_.position is not None:
            self._order = ring_order(num_chunks, round_.position, num_members)
        else:
            self._order = list(range(num_chunks))
        uses = {index: 1 + (index in self._mine) for index in range(num_chunks)}
        self._contribution = None if sent is None else Contribution(round_, payload, uses, sent)
        self._published = Progress()
        self._owners = Owners(num_members, round_.position)

    def over(self, members: Collection[Member]) -> Exchange:
        """Return an exchange for the mean over others than expected, now that this rank's contribution is whole."""
        round_ = dataclasses.replace(self.round, members=tuple(sorted(members)))
        return Exchange(round_, self._payload, None)

    async def own(self) -> Own:
        """Wait until all chunks of this rank's contribution are uploaded; return what it then puts last."""
        assert self._contribution is not None
        await self._contribution.whole.wait()
        assert self._contribution.manifest is not None
        return Own(self.round.me, self._contribution.manifest, self.sent)

    def decided(self) -> None:
        """Note that the round is decided with these members: an owner that publishes nothing now has stopped."""
        self._owners.decided()

    async def run(self) -> None:
        """Upload, reduce and download at once, until the whole mean is here. The caller bounds the wait."""
        theirs = iter(index for index in self._order if index not in self._mine)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._upload)
            if self._contribution is not None and self.round.position is None:
                return  # not expected: whatever is decided, it is not this mean with this rank in it
            tg.start_soon(Reducer(self.round, self._contribution).run, self._mine, self._publish)
            for _ in range(2 * self.round.most_in_flight):
                tg.start_soon(self._read_all, theirs)

    def apply(self) -> None:
        """Decode the whole mean into the tensors. For a worker thread; nothing can fail or be cancelled in between."""
        for chunk in self.round.grid:
            body = as_tensor(self.mean.pop(chunk.index)[HEADER_BYTES:])  # its digest was right when it came
            codec, values = get_codec(mean_wire(chunk.codec)), self._payload.view(chunk)
            if values is not None:
                codec.decode(body, values)
                continue
            with self.round.scratch.lend(chunk.numel, codec.dtype) as values:
                codec.decode(body, values)
                self._payload.write(chunk, values)
        self._payload.commit()

    async def under_way(self) -> None:
        """Wait until the first chunk is uploaded: the start of a round is no time for other work."""
        if self._contribution is not None:
            await self._contribution.sent.reach(min(1, len(self.round.grid)))

    async def _upload(self) -> None:
        if self._contribution is not None:
            await self._contribution.upload(self._order)
        self.sent.set()

    async def _publish(self, index: int, mean: memoryview) -> None:
        if self._scatters:
            async with self.round.uploads.admit() as request:
                await self.round.put(self.round.reduced_key(index), mean)
                request.nbytes = len(mean)
        self.mean[index] = mean
        self._published.advance()

    async def _read_all(self, indices: Iterator[int]) -> None:
        num_chunks, num_members = len(self.round.grid), len(self.round.members)
        for index in indices:
            place = place_of_mean(index, num_chunks, num_members)
            await self._published.reach(min(place + 1, len(self._mine)))
            owner = owner_of(index, num_chunks, num_members)
            while index not in self.mean and not self._owners.is_gone(owner):
                with self._owners.waiting(owner):
                    self.mean[index] = (await receive_mean(self.round, self.round.grid[index])).data
                    self._owners.published(owner)
            if index not in self.mean:
                await Reducer(self.round, None).run([index], self._publish)
