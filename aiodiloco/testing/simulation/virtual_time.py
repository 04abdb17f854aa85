"""An event loop whose clock jumps: hours of waiting pass in milliseconds, the same way every time."""

from __future__ import annotations

import asyncio
import random
import secrets
import selectors
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import anyio.lowlevel
from anyio import to_thread

from aiodiloco.store import resilient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["DeadlockError", "VirtualTimeLoop", "run_in_virtual_time"]

T = TypeVar("T")


class DeadlockError(Exception):
    """Every task waits for another one: nothing is scheduled that could wake any of them."""


class _JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return no event: nothing comes from outside."""
        if timeout is None:
            raise DeadlockError("all tasks wait for each other")
        self.now += max(0.0, timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop in virtual time: `loop.time()` starts at 0 and moves only when all tasks wait.

    What happens is a function of the program alone, so a program seeded by one number replays by that number. Only for
    code that sleeps through the event loop (`anyio.sleep`, cancel scopes with deadlines) and asks it for the time
    (`anyio.current_time`), and that does no I/O.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._jumping.now


def run_in_virtual_time(main: Callable[[], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Return `await main()`, run in virtual time, with work for worker threads done at once in the event loop.

    Chance is the same each time, too: what the library takes from the operating system's comes from `seed` instead.

    Raises:
        DeadlockError: nothing could ever happen again.
    """
    with _no_threads(), _same_chance(seed), asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


@contextmanager
def _no_threads() -> Iterator[None]:
    """Threads finish in an order of their own; here each is a step of the task that asked for it."""

    async def run_sync(function: Callable[..., T], *args: Any, **_options: object) -> T:
        await anyio.lowlevel.checkpoint()
        return function(*args)

    with mock.patch.object(to_thread, "run_sync", run_sync):
        yield


@contextmanager
def _same_chance(seed: int) -> Iterator[None]:
    """Names of probes and marks of claims are random, and what happens to a request depends on its key."""
    chance = random.Random(seed)  # noqa: S311 - a simulation must repeat

    def token_hex(nbytes: int = 32) -> str:
        return chance.randbytes(nbytes).hex()

    jitter = SimpleNamespace(Random=lambda: chance)
    with mock.patch.object(secrets, "token_hex", token_hex), mock.patch.object(resilient, "random", jitter):
        yield
