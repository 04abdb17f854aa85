"""Receiving chunks from other ranks: again where one came damaged, and the round refused by name where one stays so.

A refusal must reach every rank. Before the decision it is the decision. After it there is one more way: whoever waits
for a chunk of the mean finds, under its key, a document that says why there will be none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aiodiloco.codec import REDUCED, ChunkHeader, chunk_nbytes, get_codec, mean_wire, unpack_chunk
from aiodiloco.collective.buffers import MAX_REFUSAL_BYTES
from aiodiloco.collective.decider import refuse
from aiodiloco.collective.decision import wait_for_decision
from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.waiting import get_when_there, read_intact
from aiodiloco.errors import ChunkError, RoundRefusedError

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.collective.keys import Member
    from aiodiloco.collective.plan import Chunk
    from aiodiloco.collective.round import Round

__all__ = ["ReceivedChunk", "check_header", "receive_chunk", "receive_mean"]


class ReceivedChunk(NamedTuple):
    """A chunk that is whole.

    Attributes:
        data: All of it.
        header: What it says it is.
        body: The encoded values, (nbytes,) uint8, a view of `data`.
    """

    data: memoryview
    header: ChunkHeader
    body: Tensor


async def receive_chunk(round_: Round, member: Member, chunk: Chunk, into: memoryview | None) -> ReceivedChunk:
    """Wait for one chunk of a member's contribution and return it.

    It is read into `into`, or else into a piece of the round's buffers, which the caller gives back.

    Its header is that of this chunk, or of a contribution to another all-reduce: compare `header.payload`.

    Raises:
        RoundRefusedError: it is damaged where it lies, or another; says so on every rank, naming member and key.
    """
    key = round_.keys.chunk(member, chunk.index)

    async def read() -> ReceivedChunk:
        received = await _read(round_, key, chunk_nbytes(get_codec(chunk.codec), chunk.numel), into)
        if received.header.payload == round_.digest:
            check_header(received.header, chunk, member.rank)
        return received

    try:
        return await read_intact(key, read)
    except ChunkError as exc:
        reason = f"the contribution of rank {member.rank} cannot be read: {exc}"
        # Of a contribution to another all-reduce the chunks may have other sizes, and then its agreement tells.
        await refuse(round_.store, round_.keys, round_.members, round_.meter, otherwise=reason)
        await wait_for_decision(round_.store, round_.keys, round_.meter)
        if round_.agreement.algorithm == "scatter":
            await round_.put(round_.reduced_key(chunk.index), seal_document({"refused": reason}))
        raise _refused(round_, reason) from exc


async def receive_mean(round_: Round, chunk: Chunk) -> ReceivedChunk:
    """Wait for one chunk of the mean and return it, in its place in the round's buffers.

    Raises:
        RoundRefusedError: its owner could not read all contributions; says which.
        ChunkError: it is damaged where it lies, or another; names its key.
    """
    key, into = round_.reduced_key(chunk.index), round_.buffers.of_mean(chunk.index)

    async def read() -> ReceivedChunk:
        received = await _read(round_, key, chunk_nbytes(get_codec(mean_wire(chunk.codec)), chunk.numel), into)
        check_header(received.header, chunk, REDUCED)
        return received

    return await read_intact(key, read)


async def _read(round_: Round, key: str, nbytes: int, into: memoryview | None) -> ReceivedChunk:
    at_most, num = max(nbytes, MAX_REFUSAL_BYTES), len(round_.members)
    data = await get_when_there(round_.chunks, key, round_.meter, at_most=at_most, into=into, num_waiting=num)
    if bytes(data[:1]) == b"{":
        raise _refused(round_, str(parse_document(data, key, "refused")["refused"]))
    header, body = await round_.in_worker(lambda: unpack_chunk(data))
    return ReceivedChunk(data, header, body)


def _refused(round_: Round, reason: str) -> RoundRefusedError:
    return RoundRefusedError(f"round {round_.keys.round} of fragment {round_.keys.fragment} was refused: {reason}")


def check_header(header: ChunkHeader, chunk: Chunk, rank: int) -> None:
    """Raise ChunkError unless a valid chunk is also the one that was asked for."""
    codec = mean_wire(chunk.codec) if rank == REDUCED else chunk.codec
    got = (header.codec, header.numel, header.chunk, header.rank)
    if got != (codec, chunk.numel, chunk.index, rank):
        raise ChunkError(
            f"chunk {chunk.index} from rank {rank} should be {chunk.numel} × {codec}, but its key holds "
            f"chunk {header.chunk} from rank {header.rank}, {header.numel} × {header.codec}: "
            "is another run writing under this prefix?"
        )
