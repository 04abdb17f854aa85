"""Waiting for a stage to have come far enough."""

import anyio

from aiodiloco.collective.progress import Progress


async def test_waiters_go_on_at_their_point_and_not_before():
    progress, order = Progress(), []

    async def wait(count):
        await progress.reach(count)
        order.append(count)

    async with anyio.create_task_group() as tg:
        for count in (3, 1, 2, 2, 0):
            tg.start_soon(wait, count)
        await anyio.wait_all_tasks_blocked()
        seen = [list(order)]
        for _ in range(3):
            progress.advance()
            await anyio.wait_all_tasks_blocked()
            seen.append(list(order))
    assert seen == [[0], [0, 1], [0, 1, 2, 2], [0, 1, 2, 2, 3]]


async def test_a_waiter_that_is_cancelled_holds_up_nobody():
    progress, reached = Progress(), []

    async def wait():
        await progress.reach(1)
        reached.append(True)

    with anyio.move_on_after(0):
        await progress.reach(1)
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        progress.advance()
    assert reached == [True]
