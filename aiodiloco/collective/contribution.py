"""What this rank puts into a round: each chunk encoded once, uploaded in order, dropped after its last use."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import anyio
import torch

from aiodiloco.codec import HEADER_BYTES, ChunkHeader, as_tensor, as_values, get_codec, pack_chunk
from aiodiloco.codec.pieces import pieces
from aiodiloco.collective.decision import Manifest
from aiodiloco.collective.progress import Progress
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping

    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.collective.round import Round

__all__ = ["Contribution"]


class Contribution:
    """This rank's chunks of one round.

    Attributes:
        sent: Counts the chunks that are uploaded.

    Args:
        round_: The round this contributes to.
        payload: Tensors to read from; they must not change until the round is over.
        uses: How often each chunk will be asked for; its buffer is dropped after that, or earlier.
        sent: Headers of chunks sent in an earlier attempt at this round; this attempt's are added. Keys are
            written once, so a repeated attempt must bring the same values.
    """

    def __init__(
        self, round_: Round, payload: Payload, uses: MutableMapping[int, int], sent: MutableMapping[int, bytes]
    ) -> None:
        self.sent = Progress()
        self._round = round_
        self._payload = payload
        self._uses = uses
        self._sent = sent
        self._non_finite: str | None = None
        self._squares: dict[int, float] = {}  # by chunk
        self._encoded: dict[int, memoryview] = {}
        self._locks: defaultdict[int, anyio.Lock] = defaultdict(anyio.Lock)

    async def take(self, index: int) -> memoryview:
        """Return the encoded chunk; counts as one of its uses.

        Between two uses it is kept, if that are few chunks; else it is encoded again, so that a peer that is late costs
        time but not the memory of a whole contribution.
        """
        async with self._locks[index]:
            data = self._encoded.get(index)
            if data is None:
                data = self._encoded[index] = await self._encode(self._round.grid[index])
        self._uses[index] -= 1
        if self._uses[index] == 0 or len(self._encoded) > self._round.most_in_flight:
            self._encoded.pop(index, None)
        if self._uses[index] == 0:
            self._locks.pop(index, None)
        return data

    async def upload(self, order: Iterable[int]) -> None:
        """Put what the contribution consists of, then its chunks in `order`, several at once; the manifest last."""
        round_, remaining = self._round, iter(order)
        async with anyio.create_task_group() as tg:
            tg.start_soon(round_.put, round_.keys.payload(round_.me), round_.agreement_json)
            for _ in range(round_.most_in_flight):
                tg.start_soon(self._upload_chunks, remaining)
        norm = math.sqrt(math.fsum(self._squares.values()))
        manifest = Manifest(
            num_chunks=len(round_.grid),
            weight=round_.weight,
            agreement=round_.digest.hex(),
            non_finite=self._non_finite,
            norm=norm if math.isfinite(norm) else None,
            link=round_.link,
        )
        await round_.put(round_.keys.manifest(round_.me), manifest.to_json())

    async def _upload_chunks(self, indices: Iterator[int]) -> None:
        round_ = self._round
        for index in indices:
            async with round_.uploads.admit() as request:
                data = await self.take(index)
                await round_.put(round_.keys.chunk(round_.me, index), data)
                request.nbytes = len(data)
            self.sent.advance()

    async def _encode(self, chunk: Chunk) -> memoryview:
        with self._round.meter.phase("encode"):
            data, non_finite, squares = await self._round.in_worker(lambda: self._encode_and_check(chunk))
        self._non_finite = self._non_finite or non_finite
        self._squares[chunk.index] = squares
        head = bytes(data[:HEADER_BYTES])
        if self._sent.setdefault(chunk.index, head) != head:
            raise CollectiveError(
                f"rank {self._round.me.rank} already contributed other values to round {self._round.keys.round}: "
                "an all-reduce that failed can only be repeated with the same tensors"
            )
        return data

    def _encode_and_check(self, chunk: Chunk) -> tuple[memoryview, str | None, float]:
        """Return the encoded chunk; of its decoded values, the name of a tensor not finite, and the sum of squares."""
        round_ = self._round
        header = ChunkHeader(chunk.codec, chunk.numel, chunk.index, round_.me.rank, round_.weight, round_.digest)
        codec = get_codec(chunk.codec)
        with round_.scratch.lend(chunk.numel, codec.dtype) as room:
            values = self._payload.view(chunk)
            if values is None:
                self._payload.read(chunk, values := room)
            data = pack_chunk(header, values)
            body = as_tensor(data[HEADER_BYTES:])
            decoded = as_values(codec, body)
            if decoded is None:
                codec.decode(body, decoded := room)
            squares = sum(float(torch.dot(piece, piece)) for (piece,) in pieces(decoded))
            return data, self._payload.non_finite(chunk, decoded), squares
