"""Memory for the encoded chunks of one round: some of it used again and again, some of it the mean's, until the end.

Memory that was not used before costs more than the work on it: on a virtual machine whose host takes free pages back,
a quarter of an all-reduce's CPU time went into the first touch of buffers, while others were being given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiodiloco.codec import chunk_nbytes, get_codec, mean_wire
from aiodiloco.store.pages import new_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiodiloco.collective.plan import Chunk

__all__ = ["MAX_REFUSAL_BYTES", "Buffers"]

MAX_REFUSAL_BYTES = 64 << 10
"""Size of the longest document that may lie in the place of a chunk."""

_MOST_FREE = 1  # what the start of a round took at once is not held until its end, when the mean takes most
_LINE = 64  # bytes: what lies behind a header is then aligned for every dtype


class Buffers:
    """Room for the chunks of one grid: each piece holds a chunk, or a refusal, and a byte more to see what is too long.

    Args:
        grid: The chunks.
    """

    def __init__(self, grid: Sequence[Chunk]) -> None:
        self._piece_nbytes = max((_room(chunk, chunk.codec) for chunk in grid), default=0)
        self._free: list[memoryview] = []
        self._ends: list[int] = []
        end = 0
        for chunk in grid:
            end += _room(chunk, mean_wire(chunk.codec))
            self._ends.append(end)
        self._mean = new_memory(end)  # takes none before it is written to

    def take(self) -> memoryview:
        """Return room for a chunk of a contribution. What it holds does not matter."""
        return self._free.pop() if self._free else new_memory(self._piece_nbytes)

    def give_back(self, data: memoryview) -> None:
        """Let what `take` returned, or a part of it, be used again. Nobody may read or write it any more."""
        piece = memoryview(data.obj)
        assert piece.nbytes == self._piece_nbytes
        if len(self._free) < _MOST_FREE:
            self._free.append(piece)

    def of_mean(self, index: int) -> memoryview:
        """Return the room for chunk `index` of the mean, the same each time."""
        return self._mean[self._ends[index - 1] if index else 0 : self._ends[index]]


def _room(chunk: Chunk, codec: str) -> int:
    nbytes = max(chunk_nbytes(get_codec(codec), chunk.numel), MAX_REFUSAL_BYTES) + 1
    return -(-nbytes // _LINE) * _LINE
