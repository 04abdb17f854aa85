"""Room for decoded chunks, used again and again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiodiloco.codec import as_tensor
from aiodiloco.store.pages import new_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Lends memory to worker threads. There is as much of it as was ever lent at once: a few chunks.

    The first touch of fresh memory takes ten times as long as using it again.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []  # (nbytes,) uint8; threads append and pop, which is atomic

    @contextlib.contextmanager
    def lend(self, numel: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """Give room for `numel` elements, (numel,) `dtype`, for as long as the context is open."""
        nbytes = numel * dtype.itemsize
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = as_tensor(new_memory(nbytes))
        if len(buffer) < nbytes:
            buffer = as_tensor(new_memory(nbytes))
        try:
            yield buffer[:nbytes].view(dtype)
        finally:
            self._free.append(buffer)
