"""What a simulation puts in the place of clocks, threads and chance, for as long as it runs.

Everything here belongs to the operating system; the library's own code is never replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import secrets
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, TypeVar
from unittest import mock

import anyio.lowlevel
from anyio import from_thread, to_thread

from aiodiloco.executors import calls
from aiodiloco.replica import ending, guard
from aiodiloco.store import resilient
from aiodiloco.testing.simulation.process import running_process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["stand_ins"]

T = TypeVar("T")


@contextmanager
def stand_ins(clock: Callable[[], float], seed: int) -> Iterator[None]:
    """Have all of them while the block lasts.

    Args:
        clock: Virtual seconds.
        seed: Of everything random.
    """
    with ExitStack() as stack:
        for name in ("monotonic", "perf_counter"):
            stack.enter_context(mock.patch.object(time, name, clock))
        # Threads finish in an order of their own; here each is a step of the task that asked for it.
        stack.enter_context(mock.patch.object(to_thread, "run_sync", _run_at_once))
        stack.enter_context(mock.patch.object(from_thread, "run_sync", _run_from_thread))
        stack.enter_context(mock.patch.object(guard, "start_blocking_portal", _Portal))
        stack.enter_context(mock.patch.object(ending, "threading", SimpleNamespace(Thread=_Thread)))
        stack.enter_context(mock.patch.object(guard, "os", SimpleNamespace(_exit=_exit)))
        stack.enter_context(mock.patch.object(guard, "sys", SimpleNamespace(stderr=io.StringIO())))
        stack.enter_context(mock.patch.object(calls, "awake", contextlib.nullcontext))  # no signal ever comes
        # Names of probes and marks of claims are random, and what happens to a request depends on its key.
        chance = random.Random(seed)  # noqa: S311 - a simulation must repeat
        stack.enter_context(mock.patch.object(secrets, "token_hex", lambda n=32: chance.randbytes(n).hex()))
        stack.enter_context(mock.patch.object(resilient, "random", SimpleNamespace(Random=lambda: chance)))
        yield


async def _run_at_once(function: Callable[..., T], *args: Any, **_options: object) -> T:
    await anyio.lowlevel.checkpoint()
    return function(*args)


def _run_from_thread(function: Callable[..., T], *args: Any, **_options: object) -> T:
    return function(*args)


def _exit(exit_code: int) -> None:
    running_process().exit(exit_code)


class _Thread:
    """A thread that is a callback."""

    def __init__(self, *, target: Callable[[], object], **_options: object) -> None:
        self._target = target

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._target)


class _Portal:
    """A thread with an event loop of its own that is a task."""

    def __init__(self, **_options: object) -> None:
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start_task_soon(self, function: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(function())
