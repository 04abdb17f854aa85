"""A codec stays on the thread that calls it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from aiodiloco.codec import ChunkHeader, get_codec, pack_chunk, unpack_chunk, wire_names


@pytest.mark.parametrize("name", [*wire_names(), "fp64"])
def test_a_large_chunk_starts_no_thread_pool_in_the_worker(name: str) -> None:
    """torch keeps one pool of threads per calling thread: with 16 workers on 64 cores that would be 1024 threads."""
    codec = get_codec(name)
    values, out = torch.ones(300_000, dtype=codec.dtype), torch.empty(300_000, dtype=codec.dtype)

    def new_threads() -> set[int]:
        torch.set_num_threads(4)
        before = _thread_ids()
        _, body = unpack_chunk(pack_chunk(ChunkHeader(name, 300_000, 0, 0), values))
        codec.decode(body, out)
        return _thread_ids() - before

    num_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(new_threads).result() == set()
    finally:
        torch.set_num_threads(num_threads)


def _thread_ids() -> set[int]:
    return {thread.id for thread in psutil.Process().threads()}
