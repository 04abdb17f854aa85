"""An all-reduce computes on its own worker threads, and starts no more behind their backs."""

from __future__ import annotations

import threading

import anyio
import psutil
import pytest
import torch

from aiodiloco import MemoryStore, ObjectStoreAllReduce


def _hidden_threads() -> int:
    """Threads that Python did not start."""
    return psutil.Process().num_threads() - threading.active_count()


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8", "e3m0"])
def test_an_all_reduce_starts_no_pool_of_torch_threads(wire: str) -> None:
    """torch keeps one pool for each thread that calls it, and the threads of a pool spin for a while when idle."""
    num_threads = torch.get_num_threads()
    tensors = [{"w": torch.ones(300_000)} for _ in range(2)]

    async def reduce_on_both_ranks() -> None:
        store = MemoryStore()
        async with (
            ObjectStoreAllReduce(store, rank=0, world_size=2, wire=wire) as first,
            ObjectStoreAllReduce(store, rank=1, world_size=2, wire=wire) as second,
            anyio.create_task_group() as tg,
        ):
            for all_reduce in (first, second):
                tg.start_soon(all_reduce.all_reduce, tensors[all_reduce.rank])

    try:
        torch.set_num_threads(4)
        torch.ones(300_000)  # this thread's own pool is there before
        before = _hidden_threads()
        anyio.run(reduce_on_both_ranks)
        assert _hidden_threads() <= before
    finally:
        torch.set_num_threads(num_threads)
