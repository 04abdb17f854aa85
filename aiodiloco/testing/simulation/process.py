"""One simulated process: code that can be killed, stopped and cut off at any moment, and its way to the store."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.testing.simulation.gate import Gate, deliver, running_gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from types import TracebackType

    from aiodiloco.store import Buffer, Store

__all__ = ["End", "Process", "ProcessStore", "running_process"]

T = TypeVar("T")

How: TypeAlias = Literal["returned", "raised", "killed", "exited"]

_SHUTDOWN_S = 60.0
_UNWIND_S = 1000.0


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended: it returned, its main function raised, it was killed, or it left by `os._exit`."""

    at_s: float
    how: How
    error: BaseException | None = None
    exit_code: int = 0


class Process(Gate):
    """A process: tasks with a beginning and an end in common.

    Args:
        name: For people.
        open_store: Called with this and a prefix: this process's way to the objects below it.

    Attributes:
        began_s: When it was started.
        end: How it ended; None while it lives.
        pauses: From when to when it stood still.
        holds: From when to when nothing it sent arrived.
    """

    def __init__(self, name: str, open_store: Callable[[Process, str], Store]) -> None:
        super().__init__()
        self.name = name
        self.began_s = asyncio.get_running_loop().time()
        self.end: End | None = None
        self.pauses: list[tuple[float, float]] = []
        self.holds: list[tuple[float, float]] = []
        self._open_store = open_store
        self._ended = asyncio.Event()
        self._on_end: Callable[[Process], object] = lambda _: None
        self._main: asyncio.Task[None] | None = None
        self._outside = contextvars.copy_context()

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.end is None

    def start(self, main: Callable[[], Coroutine[Any, Any, object]], on_end: Callable[[Process], object]) -> None:
        """Run `main` to its end, as `asyncio.run` does; then `on_end` is called, outside."""
        self._on_end = on_end
        loop = asyncio.get_running_loop()
        self._main = self.enter(loop.create_task, self._run(main))

    def open_store(self, prefix: str) -> Store:
        """Return this process's way to the objects below `prefix`."""
        return self._open_store(self, prefix)

    def kill(self) -> None:
        """SIGKILL."""
        self._note_end("killed")

    def exit(self, exit_code: int) -> None:
        """End at once, as by `os._exit`."""
        self._note_end("exited", exit_code=exit_code)

    def terminate(self) -> None:
        """SIGTERM, of which `asyncio.run` makes a cancellation."""
        if self._main is not None and self.lives:
            self._main.cancel()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        if self.lives and not self.is_shut:
            now = asyncio.get_running_loop().time()
            self.pauses.append((now, now + seconds))
            self.shut()
            asyncio.get_running_loop().call_later(seconds, self._go_on, context=self._outside)

    def hold(self, seconds: float) -> None:
        """Let nothing that it sends arrive for so long."""
        now = asyncio.get_running_loop().time()
        self.holds.append((now, now + seconds))

    async def wait_until_ended(self) -> End:
        """Return how it ended, once it has."""
        await self._ended.wait()
        assert self.end is not None
        return self.end

    async def reach_out(self) -> None:
        """Return when something sent now would arrive. The dead send nothing."""
        while self.holds and self.lives and self._held_until_s > anyio.current_time():  # noqa: ASYNC110 - no polling
            await anyio.sleep_until(self._held_until_s)
        if not self.lives:
            raise StoreError(f"process {self.name} has ended")

    @property
    def _held_until_s(self) -> float:
        return max(end_s for _, end_s in self.holds)

    async def unwind(self) -> None:
        """After all is over, and all is checked: give the event loop back what this process left in it."""
        if self.lives:
            self._note_end("killed")
        self.reopen()
        tasks = [task for task in self.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_UNWIND_S)
            assert not left, f"tasks of {self.name} do not heed their cancellation: {left}"

    async def _run(self, main: Callable[[], Coroutine[Any, Any, object]]) -> None:
        error: BaseException | None = None
        try:
            await main()
        except BaseException as exc:  # noqa: BLE001 - whatever ends a process is noted
            error = exc
        others = [task for task in self.tasks if not task.done() and task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_SHUTDOWN_S)
        self._note_end("returned" if error is None else "raised", error)

    def _go_on(self) -> None:
        if self.lives:
            self.reopen()

    def _note_end(self, how: How, error: BaseException | None = None, exit_code: int = 0) -> None:
        if self.end is None:
            self.shut()
            loop = asyncio.get_running_loop()
            self.end = End(loop.time(), how, error, exit_code)
            loop.call_soon(self._on_end, self, context=self._outside)
            loop.call_soon(self._ended.set, context=self._outside)


class ProcessStore:
    """A store as one process sees it.

    What was written is carried out even if the process ends, is stopped or cancels the request meanwhile.

    Args:
        process: Whose.
        route: Key -> the way there.
    """

    def __init__(self, process: Process, route: Callable[[str], Store]) -> None:
        self._process = process
        self._route = route

    @property
    def uri(self) -> str:
        """Opens the same objects, from any process of the simulation."""
        return self._route("").uri

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        return await self._ask(lambda: self._route(key).get(key, start=start, length=length, into=into))

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        sent = bytes(data)
        await self._ask(lambda: deliver(lambda: self._route(key).put(key, sent)))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        sent = bytes(data)
        return await self._ask(lambda: deliver(lambda: self._route(key).put_if_absent(key, sent)))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        await self._process.reach_out()
        async for key in self._route(prefix).list(prefix, start_after=start_after):
            yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        await self._ask(lambda: deliver(lambda: self._route(key).delete(key)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    async def _ask(self, request: Callable[[], Awaitable[T]]) -> T:
        await self._process.reach_out()
        result = await request()
        await self._process.reach_out()
        return result


def running_process() -> Process:
    """Return the process whose code runs."""
    process = running_gate.get()
    assert isinstance(process, Process), "this is no process's code"
    return process
