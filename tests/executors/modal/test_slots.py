"""A bound on requests holds for tasks of all event loops, and survives their cancellation."""

from __future__ import annotations

import asyncio
import threading

import anyio

from aiodiloco.executors.modal.slots import Slots


class _Crowd:
    """Counts who holds a slot, in whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.total = 0

    async def enter(self, slots: Slots) -> None:
        async with slots.hold():
            with self._lock:
                self.inside += 1
                self.total += 1
                self.most = max(self.most, self.inside)
            await anyio.sleep(0.001)
            with self._lock:
                self.inside -= 1


def test_the_bound_holds_across_threads_and_everyone_gets_a_turn() -> None:
    slots, crowd = Slots(3), _Crowd()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(crowd.enter, slots)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (crowd.total, crowd.most, crowd.inside) == (80, 3, 0)


async def test_who_gives_up_waiting_takes_no_slot_along() -> None:
    slots, crowd = Slots(1), _Crowd()
    async with slots.hold():
        with anyio.move_on_after(0.01) as scope:
            await crowd.enter(slots)
        assert scope.cancelled_caught
    await crowd.enter(slots)
    assert crowd.total == 1


async def test_a_slot_granted_to_a_task_that_is_just_cancelled_goes_to_the_next() -> None:
    slots, crowd, first = Slots(1), _Crowd(), anyio.CancelScope()

    async def enter_and_give_up() -> None:
        with first:
            await crowd.enter(slots)

    async with anyio.create_task_group() as group:
        async with slots.hold():
            group.start_soon(enter_and_give_up)
            await anyio.sleep(0.01)
            group.start_soon(crowd.enter, slots)
            await anyio.sleep(0.01)
        first.cancel()  # the slot was granted, and its task has not run since
    assert (crowd.total, crowd.inside) == (1, 0)
