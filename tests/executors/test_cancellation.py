"""The harness that cancels at every step does what the suites that use it rely on."""

from __future__ import annotations

import asyncio
from typing import Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from aiodiloco.testing.cancellation import cancel_at_every_step


async def _checkpoint() -> None:
    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_every_suspension_of_every_task_is_struck_once_and_then_none(how: Literal["task", "scope"]) -> None:
    reached: list[str] = []
    results: list[object] = []

    async def child(name: str) -> None:
        await anyio.sleep(0.001)
        reached.append(name)
        await anyio.to_thread.run_sync(lambda: None)

    async def work() -> str:
        await _checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(child, "task group")
        await asyncio.create_task(child("task of its own"))
        reached.append("end")
        return "result"

    async def check(result: str | None) -> None:
        results.append(result)

    steps = await cancel_at_every_step(work, check, how=how)
    assert results == [None] * steps + ["result"]
    assert steps >= 7
    assert reached.count("end") < reached.count("task of its own") < reached.count("task group") < steps


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_leak_at_any_one_point_is_found(how: Literal["task", "scope"]) -> None:
    """What the harness is for: cleanup that forgets the await between getting hold of something and guarding it."""
    held: list[str] = []

    async def leaky() -> None:
        await _checkpoint()
        held.append("it")
        await _checkpoint()  # here it is lost
        try:
            await _checkpoint()
        finally:
            held.clear()

    async def check(_: None) -> None:
        assert not held

    with pytest.raises(AssertionError):
        await cancel_at_every_step(leaky, check, how=how)


@pytest.mark.parametrize("most", [1, 2])
async def test_every_place_is_struck_and_only_so_often(most: int) -> None:
    reached: list[str] = []

    async def work() -> None:
        for _ in range(10):
            await _checkpoint()
        reached.append("after the loop")
        await _checkpoint()
        await asyncio.create_task(_checkpoint())
        reached.append("end")

    async def check(_: None) -> None:
        return

    before = asyncio.get_running_loop().get_task_factory()
    steps = await cancel_at_every_step(work, check, how="task", at_most_per_place=most)
    assert asyncio.get_running_loop().get_task_factory() is before
    # In the loop, after it, and where the root waits for its task and the task itself is; the last run is whole.
    assert steps == most + 3
    assert reached.count("after the loop") == 4
    assert reached.count("end") == 1


async def test_swallowing_a_cancellation_is_an_error() -> None:
    async def deaf() -> None:
        try:
            await _checkpoint()
        except asyncio.CancelledError:
            return

    async def check(_: None) -> None:
        return

    with pytest.raises(AssertionError, match="swallowed"):
        await cancel_at_every_step(deaf, check, how="task")


async def test_an_error_of_the_coroutine_passes() -> None:
    async def fails() -> None:
        raise OSError("its own")

    async def check(_: None) -> None:
        return

    with pytest.raises(OSError, match="its own"):
        await cancel_at_every_step(fails, check, how="scope")


async def test_the_loops_task_factory_is_put_back() -> None:
    async def check(_: None) -> None:
        return

    before = asyncio.get_running_loop().get_task_factory()
    await cancel_at_every_step(_checkpoint, check, how="task")
    assert asyncio.get_running_loop().get_task_factory() is before
