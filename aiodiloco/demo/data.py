"""A replica's share of the corpus, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiodiloco.demo.corpus import find_corpus, sample

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ReplicaData"]

_HELD_OUT_WINDOWS = 192


class ReplicaData:
    """The batches one rank trains on, and the held-out windows that all are measured by.

    Args:
        rank: Whose shard.
        world_size: How many shards there are.
        seed: Seed of the batches. The held-out windows are the same for all seeds.
        context: Bytes in a window.
        batch_size: Windows in a batch.
    """

    def __init__(self, *, rank: int, world_size: int, seed: int, context: int, batch_size: int = 8) -> None:
        corpus = find_corpus()
        self.tokens_per_step = batch_size * context
        self.held_out = sample(
            corpus.text(corpus.held_out), batch_size=_HELD_OUT_WINDOWS, context=context, draw="held out"
        )
        self._text = corpus.text(corpus.shard(rank, world_size))
        self._draw = f"seed {seed}, rank {rank}"
        self._context = context
        self._batch_size = batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of inner step number `step`, both (batch_size, context) int64.

        They depend on seed, rank and step alone: a resumed replica goes on with the data it would have seen.
        """
        draw = f"{self._draw}, step {step}"
        return sample(self._text, batch_size=self._batch_size, context=self._context, draw=draw)
