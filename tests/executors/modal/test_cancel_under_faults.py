"""Whoever is cancelled while launching or collecting, at any await and under any fault, leaves no call alive.

Every await is known by its stack, and each that a run comes to is struck (`at_most_per_place=1`), until a run comes to
none that was not. So groups of three do not triple the number of runs, and a place that only some runs come to, such
as a retry, is struck when the first does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from aiodiloco.errors import LaunchError
from aiodiloco.executors import launch as launch_module
from aiodiloco.executors.modal import ModalSpawnExecutor, backend, watcher
from aiodiloco.testing.cancellation import cancel_at_every_step

from . import functions

if TYPE_CHECKING:
    from aiodiloco.testing.modal import LoopbackModal

_N = 3
_LONG_S = 600.0
_BOUND_S = 10.0

How = Literal["task", "scope"]


class Requests:
    """A fault that strikes requests."""

    def __init__(self, kind: str, *args: object, **options: object) -> None:
        self._kind, self._args, self._options = kind, args, options
        self._faults = []

    def begin(self, plane: LoopbackModal) -> None:
        self._faults.append(getattr(plane.faults, self._kind)(*self._args, **self._options))

    def end(self, plane: LoopbackModal) -> None:
        plane.faults.clear()

    @property
    def has_struck(self) -> bool:
        return any(fault.struck for fault in self._faults)


class Saboteur:
    """Does something to the call of rank 1 as soon as it is in a certain state; slows requests down to be in time."""

    def __init__(self, what: Literal["crash", "preempt", "expire"], *, when: str) -> None:
        self._what, self._when = what, when
        self.has_struck = False

    def begin(self, plane: LoopbackModal) -> None:
        plane.faults.latency(0.02, "Function*")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=(self._work, plane))
        self._thread.start()

    def end(self, plane: LoopbackModal) -> None:
        plane.faults.clear()
        self._is_over.set()
        self._thread.join()

    async def _work(self, plane: LoopbackModal) -> None:
        while not self._is_over.is_set():
            for call in plane.calls()[-_N:]:
                if call.kwargs["rank"] == 1 and call.state == self._when:
                    with contextlib.suppress(ValueError):  # it has just ended
                        await getattr(plane, self._what)(call.id)
                        self.has_struck = True
                        return
            await anyio.sleep(0.002)


_REQUESTS = {
    "latency": lambda: Requests("latency", 0.02, "Function*"),
    "unavailable": lambda: Requests("unavailable", "Function*", times=2),
    "lost response": lambda: Requests("lost_response", "Function*", times=2),
    "hang": lambda: Requests("hang", "Function*", times=2),
    "throttle": lambda: Requests("throttle", "Function*", times=2),
}
_CONTAINERS = {
    "container crash": lambda: Saboteur("crash", when="running"),
    "preempted and run again": lambda: Saboteur("preempt", when="running"),
    "expired result": lambda: Saboteur("expire", when="success"),
}
_FAULTS = {**_REQUESTS, **_CONTAINERS}


async def living(plane: LoopbackModal) -> list[str]:
    """Return the calls that have not ended, once those that are being ended had time for it."""
    latest = time.monotonic() + _BOUND_S
    while found := [f"{call.id} {call.state}: {call.kwargs}" for call in plane.calls() if call.is_alive]:
        if time.monotonic() > latest:
            break
        await anyio.sleep(0.005)
    return found


@pytest.fixture(scope="module", autouse=True)
def on_modal(session_client):
    with functions.app.run(client=session_client):
        yield


@pytest.fixture
def sleeper(client, monkeypatch) -> ModalSpawnExecutor:
    """An executor whose own bounds are short: what happens at their ends is part of what is cancelled."""
    monkeypatch.setattr(backend, "_ANSWER_S", 0.2)
    monkeypatch.setattr(watcher, "_ANSWER_S", 0.2)
    monkeypatch.setattr(watcher, "_LONG_POLL_S", 0.2)
    monkeypatch.setattr(launch_module, "_UNDO_BOUND_S", 0.2)
    return ModalSpawnExecutor(functions.sleep_by_rank, client=client, grace=0.1)


def _args(fault: str) -> dict[str, object]:
    return {"seconds": [_LONG_S, 0 if fault == "expired result" else _LONG_S, _LONG_S]}


async def _launch_bounded(executor: ModalSpawnExecutor, fault: str):
    """Return the handles, or none if a spawn hung for too long."""
    try:
        return await executor.launch_replicas(_N, entrypoint_args=_args(fault))
    except LaunchError:
        return []


@pytest.mark.parametrize(
    ("fault", "how"), [*((f, h) for f in _REQUESTS for h in ("task", "scope")), *((f, "task") for f in _CONTAINERS)]
)
async def test_launch(plane, sleeper, monkeypatch, fault: str, how: How) -> None:
    trouble = _FAULTS[fault]()
    if fault == "hang":
        monkeypatch.setattr(backend.ModalBackend, "spawn_bound_s", 0.4)

    async def launch():
        trouble.begin(plane)
        return await _launch_bounded(sleeper, fault)

    async def check(handles) -> None:
        trouble.end(plane)
        for handle in handles or ():
            await sleeper.cancel(handle)
        assert await living(plane) == []

    assert await cancel_at_every_step(launch, check, how=how, at_most_per_place=1) >= 5
    assert trouble.has_struck


@pytest.mark.parametrize("how", ["task", "scope"])
@pytest.mark.parametrize("fault", list(_FAULTS))
async def test_collect(plane, sleeper, fault: str, how: How) -> None:
    trouble = _FAULTS[fault]()
    handles = []

    async def collect():
        trouble.begin(plane)
        return await sleeper.collect(handles, timeout=0.1)

    async def check(rows) -> None:
        trouble.end(plane)
        assert await living(plane) == [], rows
        handles[:] = await sleeper.launch_replicas(_N, entrypoint_args=_args(fault))

    handles[:] = await sleeper.launch_replicas(_N, entrypoint_args=_args(fault))
    assert await cancel_at_every_step(collect, check, how=how, at_most_per_place=1) >= 5
    assert trouble.has_struck
    for handle in handles:
        await sleeper.cancel(handle)
