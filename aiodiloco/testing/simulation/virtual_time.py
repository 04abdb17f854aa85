"""An event loop whose clock jumps: hours of waiting pass in milliseconds, the same way every time."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from aiodiloco.testing.simulation.gate import running_gate
from aiodiloco.testing.simulation.stand_ins import stand_ins

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["DeadlockError", "VirtualTimeLoop", "run_in_virtual_time"]

T = TypeVar("T")

_MOST_TURNS = 50_000  # in a millisecond of virtual time
_TURN_S = 1e-9  # of the event loop; else who waits for a moment that rounding puts just ahead would turn for ever


class DeadlockError(Exception):
    """Nothing will ever happen again: every task waits for another one, or one goes round and round."""


class _JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._last = 0.0
        self._num_turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return no event: nothing comes from outside."""
        if timeout is None:
            raise DeadlockError("all tasks wait for each other")
        self.now += max(_TURN_S, timeout)
        self._num_turns += 1
        if self.now > self._last + 1e-3:
            self._last, self._num_turns = self.now, 0
        elif self._num_turns > _MOST_TURNS:
            raise DeadlockError(f"{_MOST_TURNS} turns of the event loop, and no time passes")
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

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Make a task, in the name of whoever makes it."""
        context = options.get("context")
        gate = running_gate.get() if context is None else context.get(running_gate)
        task = super().create_task(coro, **options)
        if gate is not None:
            gate.tasks.add(task)
        return task

    def call_at(  # type: ignore[override]  # for any callback
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Call back at a time, if the gate is open then."""
        gate = running_gate.get() if context is None else context.get(running_gate)
        if gate is None:
            return super().call_at(when, callback, *args, context=context)
        handles: list[asyncio.Handle] = []
        handle = super().call_at(when, gate.pass_through, handles, callback, args, context=context)
        handles.append(handle)
        return handle

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        gate = running_gate.get() if context is None else context.get(running_gate)
        call_soon: Callable[..., asyncio.Handle] = super()._call_soon  # type: ignore[misc]  # asyncio's own, untyped
        if gate is None:
            return call_soon(callback, args, context)
        handles: list[asyncio.Handle] = []
        handles.append(call_soon(gate.pass_through, (handles, callback, args), context))
        return handles[0]


def run_in_virtual_time(main: Callable[[], Coroutine[Any, Any, T]], *, seed: int = 0) -> T:
    """Return `await main()`, run in virtual time, with what threads would do done in the event loop.

    Chance is the same each time, too: what the library takes from the operating system's comes from `seed` instead.

    Raises:
        DeadlockError: nothing could ever happen again.
    """
    loop, broken = VirtualTimeLoop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, what: broken.append(what))
    with stand_ins(loop.time, seed), asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(main())
    if broken:
        raise RuntimeError(f"nobody heard of this: {broken}") from broken[0].get("exception")
    return result
