"""Time that passes only when everybody waits."""

from __future__ import annotations

import asyncio
import time

import anyio
import anyio.lowlevel
import pytest
import torch

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.store import MemoryStore
from aiodiloco.testing.simulation import DeadlockError, run_in_virtual_time
from aiodiloco.testing.simulation.gate import Gate


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
    assert [name for name, _ in woken] == ["a moment", "an hour", "a day"]
    assert [seconds for _, seconds in woken] == pytest.approx([0.25, 3600, 86400], abs=1e-6)
    assert time.monotonic() - began < 60


def test_a_deadlock_is_an_error_at_once() -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(DeadlockError):
        run_in_virtual_time(main)


def test_who_goes_round_and_round_is_stopped() -> None:
    """Time would never pass."""

    async def main() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(DeadlockError, match="no time passes"):
        run_in_virtual_time(main)


def test_what_nobody_hears_of_fails_the_simulation() -> None:
    """An error in a callback would pass unseen."""

    async def main() -> None:
        asyncio.get_running_loop().call_later(1.0, lambda: 1 / 0)
        await anyio.sleep(2)

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_in_virtual_time(main)


def test_a_shut_gate_holds_tasks_and_timers_and_runs_them_late_and_in_order() -> None:
    """As processes that are stopped and go on; what was cancelled meanwhile does not run."""
    ran: list[tuple[str, float]] = []

    async def tick(name: str) -> None:
        for _ in range(3):
            await anyio.sleep(1)
            ran.append((name, round(anyio.current_time())))

    async def main() -> None:
        loop, gate = asyncio.get_running_loop(), Gate()
        held = gate.enter(loop.create_task, tick("held"))
        free = loop.create_task(tick("free"))
        gone = gate.enter(loop.call_later, 2.0, ran.append, ("cancelled", 0.0))
        loop.call_later(1.5, gate.shut)
        loop.call_later(2.5, gone.cancel)
        loop.call_later(10.0, gate.reopen)
        await held
        await free

    run_in_virtual_time(main)
    assert [at_s for name, at_s in ran if name == "held"] == [1, 10, 11]
    assert [at_s for name, at_s in ran if name == "free"] == [1, 2, 3]
    assert ("cancelled", 0.0) not in ran


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
