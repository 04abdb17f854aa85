"""What containers do with a store on a Volume that is mounted there."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import modal
import torch

from aiodiloco import ObjectStoreAllReduce
from aiodiloco.errors import KeyNotFoundError, StoreUnsupportedError
from aiodiloco.store import FileStore, open_store, probe


async def put(uri: str, key: str, text: str) -> tuple[str, int]:
    async with open_store(uri) as store:
        await store.put(key, text.encode())
        return store.uri, os.getpid()


async def get(uri: str, key: str) -> tuple[str, int]:
    async with open_store(uri) as store:
        return bytes(await store.get(key)).decode(), os.getpid()


async def wait_for(store, key):
    with anyio.fail_after(20):
        while True:
            try:
                return bytes(await store.get(key))
            except KeyNotFoundError:
                await anyio.sleep(0.01)


async def race(uri: str, me: int, num_racers: int, num_keys: int) -> list[int]:
    """Return which of some objects this container created; all begin when all are there, and write the same."""
    async with open_store(uri) as store:
        await store.put(f"ready/{me}", b"")
        for other in range(num_racers):
            await wait_for(store, f"ready/{other}")
        return [index for index in range(num_keys) if await store.put_if_absent(f"raced/{index}", b"the same")]


async def read_while_a_file_is_open(mount: str, prefix: str, key: str, text: str) -> tuple[str, str]:
    """Return what Modal says to a reload, and what the store reads, while this process reads a dataset."""
    (Path(mount) / "dataset").write_text("rows")
    with (Path(mount) / "dataset").open():
        async with open_store(f"{mount}/{prefix}") as store:
            await store.put(key, text.encode())
            try:
                await modal.Volume.from_id(store.uri.split("/")[2]).reload.aio()
            except RuntimeError as exc:
                return str(exc), bytes(await store.get(key)).decode()
    return "reloaded", ""


async def file_store_at(path: str) -> str:
    try:
        async with FileStore(path) as store:
            return store.uri
    except StoreUnsupportedError as exc:
        return str(exc)


async def opened_as(uri: str) -> str:
    async with open_store(uri) as store:
        await probe(store)
        return store.uri


async def average(uri: str, rank: int, world_size: int, rounds: int) -> list[float]:
    """Return the averages that some rounds of all-reduce give."""
    results = []
    async with ObjectStoreAllReduce(uri, rank=rank, world_size=world_size) as all_reduce:
        for round_ in range(rounds):
            tensors = {"weight": torch.full((1000,), float(rank + round_))}
            await all_reduce.all_reduce(tensors)
            results.append(tensors["weight"].mean().item())
    return results
