"""Time that passes only when everybody waits."""

from __future__ import annotations

import time

import anyio
import pytest
import torch

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.store import MemoryStore
from aiodiloco.testing.simulation import DeadlockError, run_in_virtual_time


def test_sleepers_wake_in_order_at_their_times() -> None:
    """A day passes at once, in order, and deadlines are exact."""
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((name, anyio.current_time()))

    async def main() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(sleep, "a day", 86400)
            tg.start_soon(sleep, "a moment", 0.25)
            tg.start_soon(sleep, "an hour", 3600)
        with anyio.move_on_after(5) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught

    began = time.monotonic()
    run_in_virtual_time(main)
    assert woken == [("a moment", 0.25), ("an hour", 3600), ("a day", 86400)]
    assert time.monotonic() - began < 60


def test_a_deadlock_is_an_error_at_once() -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(DeadlockError):
        run_in_virtual_time(main)


def test_real_all_reduces_run_and_take_the_same_time_each_time() -> None:
    """With what they do in worker threads; a late rank is waited for in virtual time."""

    async def main() -> tuple[float, list[float]]:
        store = MemoryStore()
        results: list[float] = []

        async def rank(number: int) -> None:
            async with ObjectStoreAllReduce(store, rank=number, world_size=3) as all_reduce:
                await anyio.sleep(100 * number)
                tensors = {"w": torch.full((1000,), float(number))}
                await all_reduce.all_reduce(tensors)
                results.append(tensors["w"][0].item())

        async with anyio.create_task_group() as tg:
            for number in range(3):
                tg.start_soon(rank, number)
        return anyio.current_time(), results

    first, second = run_in_virtual_time(main), run_in_virtual_time(main)
    assert first == second
    assert first[1] == [1.0] * 3
    assert 200 <= first[0] < 210
