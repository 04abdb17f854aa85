"""Cutting tensor work so that it stays on the thread that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["PIECE", "even_steps", "pieces"]

PIECE: Final = 32768 - 128
"""Elements per torch call: just under the 32768 from which torch starts a pool of threads, one pool per calling thread.

Here the worker threads that encode and reduce are the parallelism; pools under them would fight each other, and the
event loop, for the cores. 128 KiB of floats also stay in cache for a second look.
"""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over the tensors side by side, `PIECE` elements at a time.

    Args:
        tensors: Each (numel,), the same numel.
    """
    return zip(*(torch.split(tensor, PIECE) for tensor in tensors), strict=True)


def even_steps(num_rows: int, step: int) -> Iterator[tuple[slice, int]]:
    """Iterate over at most two ranges of rows, and the length of the equal steps each is to be cut into.

    The first range is a multiple of `step`, the second the rest, in one step: scratch made for a range fits all of it.
    """
    even = num_rows // step * step
    if even:
        yield slice(0, even), step
    if even < num_rows:
        yield slice(even, num_rows), num_rows - even
