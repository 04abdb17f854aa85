"""The arithmetic of an all-reduce: which chunks there are, who owns them, in which order they travel, what it costs.

Pure functions of numbers that all ranks share, so every rank computes the same plan and none has to be told.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Chunk",
    "Link",
    "choose_algorithm",
    "choose_chunk_bytes",
    "estimate_seconds",
    "make_grid",
    "owned_chunks",
    "owner_of",
    "place_in_ring",
    "place_of_mean",
    "ring_order",
    "seconds_apart",
    "slowest_link",
]

Algorithm: TypeAlias = Literal["gather", "scatter"]
ALGORITHMS: tuple[Algorithm, ...] = ("gather", "scatter")

_SHARE_OF_CHUNK = 0.7  # a measured bandwidth is rather too low
_GRAIN = 1024  # chunk lengths are multiples of this many elements: a multiple of every codec's block
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 256 << 10, 4 << 20  # below, requests dominate; above, stages stop overlapping


@dataclasses.dataclass(frozen=True)
class Link:
    """What the cost model assumes of one replica's way to the store.

    Attributes:
        latency_s: Seconds from a request to its first byte.
        bandwidth: Bytes per second, each way.
    """

    latency_s: float = 0.03
    bandwidth: float = 100e6

    def __post_init__(self) -> None:
        if not self.latency_s >= 0 or not self.bandwidth > 0:
            raise ValueError(f"a link needs latency_s >= 0 and bandwidth > 0, not {self}")


def slowest_link(links: Iterable[Link | None]) -> Link | None:
    """Return the longest latency and the smallest bandwidth of those that are known: a round waits for the slowest."""
    known = [link for link in links if link is not None]
    if not known:
        return None
    return Link(max(link.latency_s for link in known), min(link.bandwidth for link in known))


def seconds_apart(chunk_nbytes: int, link: Link) -> float:
    """Return how far apart the first uploads of a round should begin: about as long as each takes the link.

    Those that begin together share the link and arrive together, and until then nobody has anything to read. Rather
    less than more, and never more than a round trip: a link that idles loses more than one that is shared.
    """
    return min(link.latency_s, _SHARE_OF_CHUNK * chunk_nbytes / link.bandwidth)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One cell of the grid: elements `start : stop` of a section of the payload, encoded with `codec`."""

    index: int
    section: int
    codec: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def choose_chunk_bytes(wire_bytes: int, decoded_bytes: int, world_size: int) -> int:
    """Return how many encoded bytes a chunk should hold.

    Four chunks per owner, and 32 in all, keep encode, upload, reduce and download busy at once; larger chunks than that
    buy nothing, smaller ones pay a request for little. Decoded, a chunk has a power of two of bytes from 256 KiB to
    4 MiB: what a chunk takes in memory on its way through is mostly that, so narrow wire formats get narrow chunks.

    Args:
        wire_bytes: Encoded size of the payload.
        decoded_bytes: Its size in fp32 (or fp64, where it travels as that).
        world_size: Number of ranks.
    """
    per_stage = max(1, decoded_bytes // max(32, 4 * world_size))
    decoded = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, 1 << (per_stage.bit_length() - 1)))
    return max(1, math.ceil(decoded * wire_bytes / max(1, decoded_bytes)))


def make_grid(sections: Sequence[tuple[str, int, float]], chunk_bytes: int) -> tuple[Chunk, ...]:
    """Return the chunks of a payload; nothing in it depends on the number of ranks once `chunk_bytes` is chosen.

    Args:
        sections: Per section its codec name, its number of elements, and encoded bytes per element.
        chunk_bytes: Encoded bytes a full chunk holds, about: lengths are rounded to whole blocks of every codec.
    """
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, not {chunk_bytes}")
    chunks: list[Chunk] = []
    for section, (codec, numel, element_bytes) in enumerate(sections):
        step = max(_GRAIN, math.floor(chunk_bytes / element_bytes) // _GRAIN * _GRAIN)
        for start in range(0, numel, step):
            chunks.append(Chunk(len(chunks), section, codec, start, min(start + step, numel)))
    return tuple(chunks)


def owned_chunks(num_chunks: int, position: int, num_members: int) -> range:
    """Return the contiguous block of chunks that the member at `position` of `num_members` reduces."""
    return range(position * num_chunks // num_members, (position + 1) * num_chunks // num_members)


def ring_order(num_chunks: int, position: int, num_members: int) -> list[int]:
    """Return all chunks in the order this member sends (and later reads) them.

    One chunk for each owner in turn, beginning with the next member: every owner gets its first chunk from everyone
    early and at a different time, so reductions start at once. The member's own block comes last: no one waits for it.
    """
    blocks = [owned_chunks(num_chunks, (position + d) % num_members, num_members) for d in range(1, num_members)]
    depth = max((len(block) for block in blocks), default=0)
    order = [block[i] for i in range(depth) for block in blocks if i < len(block)]
    return order + list(owned_chunks(num_chunks, position, num_members))


def place_in_ring(chunk: int, num_chunks: int, position: int, num_members: int) -> int:
    """Return about how many chunks the member at `position` sends before `chunk`, which another member owns.

    Exact but for the last chunk of the larger blocks, where only some of the owners have one more.
    """
    owner = owner_of(chunk, num_chunks, num_members)
    row = chunk - owned_chunks(num_chunks, owner, num_members).start
    full_rows, larger_blocks = divmod(num_chunks, num_members)
    in_row = (owner - position) % num_members - 1
    if row == full_rows:
        in_row = in_row * larger_blocks // num_members
    return row * (num_members - 1) + in_row


def place_of_mean(chunk: int, num_chunks: int, num_members: int) -> int:
    """Return how many chunks of the mean the owner of `chunk` publishes before it."""
    return chunk - owned_chunks(num_chunks, owner_of(chunk, num_chunks, num_members), num_members).start


def owner_of(chunk: int, num_chunks: int, num_members: int) -> int:
    """Return the position of the member that reduces `chunk`."""
    return ((chunk + 1) * num_members - 1) // num_chunks


def estimate_seconds(algorithm: Algorithm, wire_bytes: int, world_size: int, link: Link) -> float:
    """Return the predicted time of one all-reduce: bytes of the busier direction, and the round trips in a row."""
    others = world_size - 1
    if algorithm == "gather":
        up, down, trips = 1.0, float(others), 2
    else:
        up, down, trips = 1 + 1 / world_size, 2 * others / world_size, 4
    return max(up, down) * wire_bytes / link.bandwidth + trips * link.latency_s


def choose_algorithm(wire_bytes: int, world_size: int, link: Link) -> Algorithm:
    """Return the cheaper algorithm: gather for small payloads and two ranks, scatter for the rest; ties gather."""
    return min(ALGORITHMS, key=lambda name: estimate_seconds(name, wire_bytes, world_size, link))
