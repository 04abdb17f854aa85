"""What this rank puts into a round: each chunk encoded once, uploaded in order, dropped after its last use."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from typing import TYPE_CHECKING

import anyio
import torch

from aiodiloco.codec import HEADER_BYTES, ChunkHeader, as_tensor, as_values, get_codec, pack_chunk
from aiodiloco.codec.pieces import pieces
from aiodiloco.collective.decision import Manifest
from aiodiloco.collective.plan import Link, seconds_apart
from aiodiloco.collective.progress import Progress
from aiodiloco.errors import CollectiveError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, MutableMapping

    from torch import Tensor

    from aiodiloco.collective.payload import Payload
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.collective.round import Round

__all__ = ["Contribution"]


@dataclasses.dataclass
class _Encoded:
    """An encoded chunk.

    Attributes:
        data: The chunk.
        piece: The memory it lies in.
        num_lent: How many are using it now.
    """

    data: memoryview
    piece: memoryview
    num_lent: int = 0


class Contribution:
    """This rank's chunks of one round.

    Attributes:
        sent: Counts the chunks that are uploaded.
        whole: Set once all chunks are uploaded.
        manifest: What it consists of; there from then on, though it is not yet put.

    Args:
        round_: The round this contributes to.
        payload: Tensors to read from; they must not change until the round is over.
        uses: How often each chunk will be asked for; its memory is given back after that, or earlier.
        sent: Headers of chunks sent in an earlier attempt at this round; this attempt's are added. Keys are
            written once, so a repeated attempt must bring the same values.
    """

    def __init__(
        self, round_: Round, payload: Payload, uses: MutableMapping[int, int], sent: MutableMapping[int, bytes]
    ) -> None:
        self.sent = Progress()
        self.whole = anyio.Event()
        self.manifest: Manifest | None = None
        self._round = round_
        self._payload = payload
        self._uses = uses
        self._sent = sent
        self._non_finite: str | None = None
        self._squares: dict[int, float] = {}  # by chunk
        self._encoded: dict[int, _Encoded] = {}
        self._locks: defaultdict[int, anyio.Lock] = defaultdict(anyio.Lock)

    @contextlib.asynccontextmanager
    async def lend(self, index: int) -> AsyncIterator[memoryview]:
        """Give the encoded chunk, for as long as the context is open; counts as one of its uses.

        Between two uses it is kept, if that are few chunks; else it is encoded again, so that a peer that is late costs
        time but not the memory of a whole contribution.
        """
        async with self._locks[index]:
            encoded = self._encoded.get(index)
            if encoded is None:
                encoded = self._encoded[index] = await self._encode(self._round.grid[index])
            encoded.num_lent += 1
        self._uses[index] -= 1
        yield encoded.data
        encoded.num_lent -= 1  # not where the body failed: then something may still read it, and it is not used again
        self._drop_if_done(index, encoded)

    def _drop_if_done(self, index: int, encoded: _Encoded) -> None:
        if encoded.num_lent:
            return
        is_last = not self._uses[index]
        if is_last:
            self._locks.pop(index, None)
        if is_last or len(self._encoded) > self._round.most_in_flight:
            del self._encoded[index]
            self._round.buffers.give_back(encoded.piece)

    async def upload(self, order: Iterable[int]) -> None:
        """Put what the contribution consists of, then its chunks in `order`, several at once; the manifest last."""
        round_, remaining = self._round, iter(order)
        async with anyio.create_task_group() as tg:
            tg.start_soon(round_.put, round_.keys.payload(round_.me), round_.agreement_json)
            nbytes = max((get_codec(chunk.codec).nbytes(chunk.numel) for chunk in round_.grid), default=0)
            for place in range(round_.most_in_flight):
                tg.start_soon(self._upload_chunks, remaining, place * seconds_apart(nbytes, round_.link or Link()))
        norm = math.sqrt(math.fsum(self._squares.values()))
        self.manifest = Manifest(
            num_chunks=len(round_.grid),
            weight=round_.weight,
            agreement=round_.digest.hex(),
            non_finite=self._non_finite,
            norm=norm if math.isfinite(norm) else None,
            link=round_.link,
        )
        self.whole.set()
        await round_.put(round_.keys.manifest(round_.me), self.manifest.to_json())

    async def _upload_chunks(self, indices: Iterator[int], after_s: float) -> None:
        round_ = self._round
        await anyio.sleep(after_s)
        for index in indices:
            async with round_.uploads.admit() as request, self.lend(index) as data:
                await round_.put(round_.keys.chunk(round_.me, index), data)
                request.nbytes = len(data)
            self.sent.advance()

    async def _encode(self, chunk: Chunk) -> _Encoded:
        piece = self._round.buffers.take()
        with self._round.meter.phase("encode"):
            data, non_finite, squares = await self._round.in_worker(lambda: self._encode_and_check(chunk, piece))
        self._non_finite = self._non_finite or non_finite
        self._squares[chunk.index] = squares
        head = bytes(data[:HEADER_BYTES])
        if self._sent.setdefault(chunk.index, head) != head:
            raise CollectiveError(
                f"rank {self._round.me.rank} already contributed other values to round {self._round.keys.round}: "
                "an all-reduce that failed can only be repeated with the same tensors"
            )
        return _Encoded(data, piece)

    def _encode_and_check(self, chunk: Chunk, piece: memoryview) -> tuple[memoryview, str | None, float]:
        """Return the encoded chunk; of its decoded values, the name of a tensor not finite, and the sum of squares."""
        round_ = self._round
        header = ChunkHeader(chunk.codec, chunk.numel, chunk.index, round_.me.rank, round_.weight, round_.digest)
        codec = get_codec(chunk.codec)
        with round_.scratch.lend(chunk.numel, codec.dtype) as room:
            values = self._payload.view(chunk)
            if values is None:
                self._payload.read(chunk, values := room)
            data = pack_chunk(header, values, piece)
            body = as_tensor(data[HEADER_BYTES:])
            decoded = as_values(codec, body)
            if decoded is None:
                codec.decode(body, decoded := room)
            squares = _sum_of_squares(decoded)
            # A finite sum has finite terms only: most chunks need no second look.
            return data, None if math.isfinite(squares) else self._payload.non_finite(chunk, decoded), squares


def _sum_of_squares(values: Tensor) -> float:
    """Return the sum of squares; NaN or infinite if one of the values is.

    `torch.dot` is faster by itself, but starts a thread pool, one per worker thread, whose threads spin when idle.
    """
    norms = (float(torch.linalg.vector_norm(piece)) for (piece,) in pieces(values))
    return sum(norm * norm for norm in norms)
