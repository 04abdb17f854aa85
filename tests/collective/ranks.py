"""Running all ranks of an all-reduce in one event loop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import torch

from aiodiloco.collective import AllReduceReport, ObjectStoreAllReduce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from torch import Tensor

    from aiodiloco.store import Store


@contextlib.asynccontextmanager
async def open_ranks(store: Store, world_size: int, **options: Any) -> AsyncIterator[list[ObjectStoreAllReduce]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                ObjectStoreAllReduce(store, rank=rank, world_size=world_size, timeout=30, **options)
            )
            for rank in range(world_size)
        ]


async def on_all(
    ranks: Sequence[ObjectStoreAllReduce], call: Callable[[ObjectStoreAllReduce], Awaitable[Any]]
) -> list[Any]:
    """Return each rank's outcome, in rank order: what `call` returned or the exception it raised."""
    outcomes: list[Any] = [None] * len(ranks)

    async def run(rank: ObjectStoreAllReduce) -> None:
        try:
            outcomes[rank.rank] = await call(rank)
        except Exception as exc:
            outcomes[rank.rank] = exc

    async with anyio.create_task_group() as tg:
        for rank in ranks:
            tg.start_soon(run, rank)
    return outcomes


async def reduce_all(
    ranks: Sequence[ObjectStoreAllReduce], tensors: Sequence[dict[str, Tensor]], **options: Any
) -> list[AllReduceReport]:
    reports = await on_all(ranks, lambda r: r.all_reduce(tensors[r.rank], **options))
    for report in reports:
        if isinstance(report, Exception):
            raise report
    return reports


def random_tensors(
    rank: int, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def mean_in_rank_order(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The definition: float32 sums in rank order, divided once."""
    total = {name: torch.zeros_like(t) for name, t in tensors[0].items()}
    for ranks_tensors in tensors:
        for name, t in ranks_tensors.items():
            total[name] += t
    return {name: t / len(tensors) for name, t in total.items()}
