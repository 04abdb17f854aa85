"""Deadlines hold to half a second, whatever the control plane does: hung, dead, or throttling.

A busy machine runs everything late, so each bound grows by the longest time for which the event loop itself was late in
that very run: what is measured is the executor, and not the machine.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.errors import ExecutorError, LaunchError
from aiodiloco.executors import launch as launch_module
from aiodiloco.executors.modal import ModalExecutor, backend
from aiodiloco.testing import entrypoints
from aiodiloco.testing.modal import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_N = 8
_TIMEOUT_S = 0.7
_PROMISE_S = 0.5
_TICK_S = 0.005


class Watch:
    """Measures how long a block took, and how late the event loop was at worst meanwhile."""

    def __init__(self) -> None:
        self.took_s = 0.0
        self.worst_gap_s = 0.0

    @contextlib.asynccontextmanager
    async def measure(self) -> AsyncIterator[None]:
        """Measure the block."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            start = time.monotonic()
            yield
            self.took_s = time.monotonic() - start
            group.cancel_scope.cancel()

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await anyio.sleep(_TICK_S)
            self.worst_gap_s = max(self.worst_gap_s, time.monotonic() - before - _TICK_S)

    def assert_kept(self, bound_s: float, record) -> None:
        """Assert that the block ended by the bound, half a second and what the event loop was late."""
        overshoot_s = self.took_s - bound_s
        record("overshoot_s", round(overshoot_s, 3))
        record("worst_gap_s", round(self.worst_gap_s, 3))
        assert overshoot_s < _PROMISE_S + self.worst_gap_s


@pytest.fixture(scope="module")
def plane():
    with LoopbackModal(preload=["aiodiloco.executors.modal.replica", "aiodiloco.testing.entrypoints"]) as plane:
        yield plane


@pytest.fixture
async def executor(plane):
    executor = ModalExecutor(client=await plane.client(), grace=0.1)
    yield executor
    plane.reset()
    await executor.close()


@contextlib.asynccontextmanager
async def _dead(plane: LoopbackModal) -> AsyncIterator[None]:
    async with plane.down():
        yield


@contextlib.asynccontextmanager
async def _striking(plane: LoopbackModal, kind: str, **options: float) -> AsyncIterator[None]:
    getattr(plane.faults, kind)("*", **options)
    yield
    plane.faults.clear()


_TROUBLE = {
    "hung": lambda plane: _striking(plane, "hang"),
    "dead": _dead,
    "throttling": lambda plane: _striking(plane, "throttle"),
    "throttling politely": lambda plane: _striking(plane, "throttle", retry_after_s=5),
}
_each_trouble = pytest.mark.parametrize("trouble", list(_TROUBLE))


@_each_trouble
async def test_collect(plane, executor, trouble, record_property) -> None:
    handles = await executor.launch_replicas(_N, entrypoints.sleep)
    watch = Watch()
    async with _TROUBLE[trouble](plane):
        async with watch.measure():
            rows = await executor.collect(handles, timeout=_TIMEOUT_S)
        assert [row.status for row in rows] == ["running"] * _N
        assert watch.took_s >= _TIMEOUT_S
    watch.assert_kept(_TIMEOUT_S, record_property)


@_each_trouble
async def test_as_completed(plane, executor, trouble, record_property) -> None:
    handles = await executor.launch_replicas(_N, entrypoints.sleep)
    watch = Watch()
    async with _TROUBLE[trouble](plane):
        async with watch.measure():
            rows = [row async for row in executor.as_completed(handles, timeout=_TIMEOUT_S)]
        assert [row.status for row in rows] == ["running"] * _N
        assert watch.took_s >= _TIMEOUT_S
    watch.assert_kept(_TIMEOUT_S, record_property)


@_each_trouble
async def test_collect_that_is_cancelled(plane, executor, trouble, record_property, monkeypatch) -> None:
    """Its bound is that of the confirmations it waits for."""
    monkeypatch.setattr("aiodiloco.executors.collect._CANCELLED_BOUND_S", 0.4)
    handles = await executor.launch_replicas(_N, entrypoints.sleep)
    watch = Watch()
    async with _TROUBLE[trouble](plane), watch.measure():
        with anyio.move_on_after(0.3) as scope:
            await executor.collect(handles)
    assert scope.cancelled_caught
    watch.assert_kept(0.3 + 0.4, record_property)


@_each_trouble
async def test_cancel(plane, executor, trouble, record_property, monkeypatch) -> None:
    monkeypatch.setattr("aiodiloco.executors.core._CONFIRM_MARGIN_S", 0.1)
    monkeypatch.setattr(executor._backend, "cancel_bound_s", 0.6)
    handles = await executor.launch_replicas(_N, entrypoints.sleep)
    errors = []
    watch = Watch()

    async def cancel(handle) -> None:
        with pytest.raises(ExecutorError, match="its cancellation was asked for but not confirmed") as caught:
            await executor.cancel(handle)
        errors.append(caught.value)

    async with _TROUBLE[trouble](plane), watch.measure(), anyio.create_task_group() as group:
        for handle in handles:
            group.start_soon(cancel, handle)
    assert len(errors) == _N
    watch.assert_kept(0.7, record_property)


@_each_trouble
async def test_launch(plane, executor, trouble, record_property, monkeypatch) -> None:
    """A launch that fails takes its bound for spawns, and as long again as undoing may take."""
    await executor.collect(await executor.launch_replicas(1, entrypoints.add))  # deploys
    monkeypatch.setattr(backend.ModalBackend, "spawn_bound_s", 0.6)
    monkeypatch.setattr(launch_module, "_UNDO_BOUND_S", 0.4)
    before = len(plane.calls())
    watch = Watch()
    async with _TROUBLE[trouble](plane):
        async with watch.measure():
            with pytest.raises(LaunchError, match="rank 0 could not be started") as caught:
                await executor.launch_replicas(_N, entrypoints.sleep)
        assert all(row.status == "pending" for row in caught.value.results)
    assert len(plane.calls()) == before
    watch.assert_kept(0.6 + 0.4, record_property)


@_each_trouble
async def test_closing(plane, executor, trouble, record_property, monkeypatch) -> None:
    monkeypatch.setattr("aiodiloco.executors.modal.app._STOP_BOUND_S", 0.6)
    await executor.launch_replicas(_N, entrypoints.sleep)
    watch = Watch()
    async with _TROUBLE[trouble](plane), watch.measure():
        with pytest.raises(ExecutorError, match="run `modal app stop"):
            await executor.close()
    watch.assert_kept(0.6, record_property)
