"""Cancel a coroutine at each of its suspensions in turn, and look at what it leaves behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

__all__ = ["cancel_at_every_step"]

T = TypeVar("T")

_Place: TypeAlias = tuple[tuple[str, int], ...]

_MAX_STEPS = 10_000


async def cancel_at_every_step(
    make: Callable[[], Coroutine[Any, Any, T]],
    check: Callable[[T | None], Awaitable[None]],
    *,
    how: Literal["task", "scope"],
    at_most_per_place: int | None = None,
) -> int:
    """Return at how many steps `make()` was cancelled: at the first, the second, … until it was not reached any more.

    A step is a suspension of the coroutine or of any task that it started, directly or not; so every point at which a
    cancellation can strike is struck, also those in which the coroutine only waits for a task of its own.

    Args:
        make: Makes the coroutine anew; it runs as a task of its own.
        check: Awaited after every run, to assert that nothing is left over. Gets what the coroutine returned, or None
            if it was cancelled.
        how: `"task"` cancels by `asyncio.Task.cancel()`, once; `"scope"` by an anyio cancel scope around the coroutine.
        at_most_per_place: Spare steps that are like others. A place is the stack of awaits that suspends, by file and
            line, so every place that a run comes to is struck, for its first so many occurrences in a run. For
            coroutines that do the same for many, or with waits in loops.

    Raises:
        AssertionError: the coroutine swallowed its cancellation, or never ends.
    """
    strike = _EveryStep() if at_most_per_place is None else _EveryPlace(at_most_per_place)
    for step in range(_MAX_STEPS):
        strike.begin()
        run = _Run(make(), strike, how)
        await check(await run.finish())
        if not run.was_struck:
            return step
    raise AssertionError(f"{make!r} still suspends after {_MAX_STEPS} steps")


class _Strike(Protocol):
    """Chooses the suspension at which a run is cancelled."""

    def begin(self) -> None:
        """Another run begins."""

    def is_due(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Return whether to cancel now that `coroutine` is about to suspend; not asked again in this run if so."""


class _EveryStep:
    """The first suspension in the first run, the second in the second, …"""

    def __init__(self) -> None:
        self._next = -1
        self._left = 0

    def begin(self) -> None:
        self._next += 1
        self._left = self._next

    def is_due(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        del coroutine
        self._left -= 1
        return self._left == -1


class _EveryPlace:
    """The first suspension of a run in a place that was not struck yet, or less than the n-th time in one run."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._struck: set[tuple[_Place, int]] = set()
        self._reached: Counter[_Place] = Counter()

    def begin(self) -> None:
        self._reached.clear()

    def is_due(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        place = _place(coroutine)
        self._reached[place] += 1
        occurrence = (place, self._reached[place])
        if occurrence[1] > self._most or occurrence in self._struck:
            return False
        self._struck.add(occurrence)
        return True


def _place(coroutine: object) -> _Place:
    """Return the stack of awaits of a suspended coroutine, outermost first."""
    stack = []
    while (frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)) is not None:
        stack.append((frame.f_code.co_filename, frame.f_lineno))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return tuple(stack)


class _Run(Generic[T]):
    """One run, cancelled at one of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], strike: _Strike, how: Literal["task", "scope"]) -> None:
        self.was_struck = False
        self._coroutine = coroutine
        self._strike = strike
        self._how = how
        self._scope = anyio.CancelScope()
        self._root: asyncio.Task[T | None] | None = None

    async def finish(self) -> T | None:
        """Return what the coroutine returned, or None if it was cancelled."""
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(cast("Any", self._make_task))  # typeshed's protocol names private types
        try:
            self._root = loop.create_task(self._in_scope())
            await asyncio.wait([self._root])
        finally:
            loop.set_task_factory(before)
        if self._root.cancelled():
            return None
        return self._root.result()

    async def _in_scope(self) -> T | None:
        with self._scope:
            result = await self._coroutine
            assert self._how == "scope" or not self.was_struck, "the coroutine swallowed its cancellation"
            return result
        return None

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(self._count_suspensions(coroutine), loop=loop, **options)
        task.add_done_callback(lambda _: coroutine.close())  # of a task that was cancelled before it began
        return task

    async def _count_suspensions(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await _Steps(coroutine, self._note_suspension)

    def _note_suspension(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self.was_struck or not self._strike.is_due(coroutine) or self._root is None or self._root.done():
            return
        self.was_struck = True
        if self._how == "task":
            self._root.cancel()
        else:
            self._scope.cancel()


class _Steps:
    """Awaits a coroutine, calling `on_suspend` each time before it suspends."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], on_suspend: Callable[[Coroutine[Any, Any, Any]], None]
    ) -> None:
        self._coroutine = coroutine
        self._on_suspend = on_suspend

    def __await__(self) -> Generator[Any, Any, Any]:
        send, value = self._coroutine.send, None
        while True:
            try:
                awaited = send(value)
            except StopIteration as end:
                return end.value
            self._on_suspend(self._coroutine)
            try:
                value = yield awaited
                send = self._coroutine.send
            except BaseException as exc:  # noqa: BLE001 - handed on to the coroutine
                send, value = self._coroutine.throw, exc
