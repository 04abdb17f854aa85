"""What a simulated process's code has to pass before it runs: how processes are stopped and killed."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Gate", "deliver", "running_gate"]

T = TypeVar("T")

running_gate: ContextVar[Gate | None] = ContextVar("running_gate", default=None)
"""What the running code has to pass; inherited by the tasks and timers it makes."""


class Gate:
    """Holds up everything that runs in its name, tasks, timers and callbacks, while it is shut.

    That is what SIGSTOP does to a process, and SIGKILL if it is never opened again. Nothing is cancelled, and no
    `finally` runs. The clock goes on meanwhile: what was due is run late, as soon as the gate opens.

    Attributes:
        tasks: Those made in its name, as long as they exist.
    """

    def __init__(self) -> None:
        self.is_shut = False
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._held: list[tuple[asyncio.Handle, Callable[..., object], tuple[object, ...]]] = []

    def enter(self, function: Callable[..., T], *args: Any) -> T:
        """Return `function(*args)`, called in the name of this gate."""
        context = contextvars.copy_context()
        context.run(running_gate.set, self)
        return context.run(function, *args)

    def shut(self) -> None:
        """Let nothing run from now on."""
        self.is_shut = True

    def reopen(self) -> None:
        """Let run what was held up, in the order in which it was due, and what comes."""
        self.is_shut = False
        held, self._held = self._held, []
        for handle, callback, args in held:
            self.enter(asyncio.get_running_loop().call_soon, self._catch_up, handle, callback, args)

    def pass_through(self, handles: list[asyncio.Handle], callback: Callable[..., object], args: Any) -> None:
        """Run a callback of the event loop, now or later; `handles` holds its own."""
        if self.is_shut:
            self._held.append((handles[0], callback, args))
        else:
            callback(*args)

    @staticmethod
    def _catch_up(handle: asyncio.Handle, callback: Callable[..., object], args: Any) -> None:
        if not handle.cancelled():
            handle._context.run(callback, *args)  # type: ignore[attr-defined]  # asyncio's own


async def deliver(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what `request` returns. Once sent it is carried out, whatever becomes of who sent it."""
    context = contextvars.copy_context()
    context.run(running_gate.set, None)
    task = asyncio.get_running_loop().create_task(request(), context=context)
    task.add_done_callback(_retrieve, context=context)
    return await asyncio.shield(task)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """An answer that nobody waits for any more is no reason for a warning."""
    if not task.cancelled():
        task.exception()
