"""What was asked for before a program ends is carried out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from aiodiloco.executors import calls
from aiodiloco.executors.awake import awake
from aiodiloco.executors.core import Executor

from .scripted import Replica, ScriptedBackend, hang

if TYPE_CHECKING:
    import pytest


def _backend(before_cancel, *, cancel_bound_s: float = 5.0) -> ScriptedBackend:
    backend = ScriptedBackend(cancel_bound_s=cancel_bound_s)
    backend.before_cancel = before_cancel
    backend.replicas = {rank: Replica() for rank in range(3)}
    return backend


async def _collect(backend: ScriptedBackend) -> Executor:
    executor = Executor(backend)
    rows = await executor.collect([backend.handle(rank) for rank in range(3)], timeout=0.01)
    assert [row.status for row in rows] == ["running"] * 3
    return executor


async def _slowly(rank: int) -> None:
    await asyncio.sleep(0.6)  # longer than collect waits for a confirmation


async def test_closing_waits_for_what_is_being_cancelled() -> None:
    backend = _backend(_slowly)
    async with await _collect(backend):
        assert {replica.status for replica in backend.replicas.values()} == {"running"}
    assert {replica.status for replica in backend.replicas.values()} == {"cancelled"}
    assert {replica.cancels for replica in backend.replicas.values()} == {1}


async def test_closing_is_bounded_where_the_backend_hangs() -> None:
    backend = _backend(hang, cancel_bound_s=0.6)
    executor, since = await _collect(backend), time.monotonic()
    await executor.close()
    assert time.monotonic() - since < 5


def test_what_is_being_cancelled_at_the_end_of_the_event_loop_is_asked_for_once_more() -> None:
    backend = _backend(_slowly)
    asyncio.run(_collect(backend))
    assert {replica.status for replica in backend.replicas.values()} == {"cancelled"}
    assert {replica.cancels for replica in backend.replicas.values()} == {2}


def test_the_end_of_the_event_loop_is_not_held_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_LAST_S", 0.05)
    backend, since = _backend(hang, cancel_bound_s=100.0), time.monotonic()
    asyncio.run(_collect(backend))
    assert time.monotonic() - since < 10
    assert {replica.cancels for replica in backend.replicas.values()} == {2}


async def test_all_who_wait_in_an_event_loop_share_the_timer_that_keeps_it_awake() -> None:
    loop = asyncio.get_running_loop()

    def num_timers() -> int:
        return sum(not timer.cancelled() for timer in loop._scheduled)

    before = num_timers()
    with contextlib.ExitStack() as first:
        first.enter_context(awake())
        with contextlib.ExitStack() as others:
            for _ in range(100):
                others.enter_context(awake())
            first.close()
            assert num_timers() == before + 1
    assert num_timers() == before
    with awake():
        assert num_timers() == before + 1
