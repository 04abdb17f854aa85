"""What a feed reads: the event log of a run, and the output of its replicas."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from aiodiloco.errors import AiodilocoError, HandleError
from aiodiloco.events import Cursor, Event
from aiodiloco.events.reader import read_pass
from aiodiloco.run.journal import Slot, read_journal
from aiodiloco.run.record import read_result
from aiodiloco.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from anyio.abc import TaskGroup

    from aiodiloco.executors.core import Executor
    from aiodiloco.records import JSON, ReplicaHandle
    from aiodiloco.run.record import RunResult
    from aiodiloco.store import Store

__all__ = ["EventLog", "Output"]

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_LAST_EVENTS_S = 5.0  # after its result, a driver writes its last events
_ALL_LINES = 1 << 30
_LINES_AT_ONCE = 256
_LOOK_S = 1.0  # for replicas that were started again
_MOST_LINES = 5000
_AGAIN_S = 1.0


class EventLog:
    """The events of a run until its end.

    Args:
        uri: Of the run.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def follow(self, emit: Callable[[Sequence[Event]], None], *, after: Cursor) -> JSON:
        """Emit events, pass by pass, until the run has a result and its driver has written `run_ended`."""
        cursor, result, is_told, give_up_at = after, None, False, float("inf")
        async with open_store(self._uri) as store:
            while True:
                if result is None and (result := await read_result(store)) is not None:
                    give_up_at = time.monotonic() + _LAST_EVENTS_S
                found, cursor, complete = await read_pass(store, cursor)
                emit(found)
                is_told = is_told or any(_is_last(event) for event in found)
                if complete and result is not None and (is_told or time.monotonic() >= give_up_at):
                    return _summary(result)
                await anyio.sleep(_POLL_S if complete else 0)

    async def read_some(self, after: Cursor) -> Sequence[Event]:
        """Return one pass over the log."""
        async with open_store(self._uri) as store:
            found, _, _ = await read_pass(store, after)
        return found


class Output:
    """What the replicas of a run print: each line an event, by `rank-incarnation`, whose seq is its number.

    Args:
        executor: Of the run's backend.
        uri: Of the run.
        n_replicas: How many it has.
        ranks: Whose output.
    """

    def __init__(self, executor: Executor, uri: str, n_replicas: int, ranks: Collection[int]) -> None:
        self._executor = executor
        self._uri = uri
        self._n_replicas = n_replicas
        self._ranks = ranks

    async def follow(self, emit: Callable[[Sequence[Event]], None], *, after: Cursor) -> JSON:
        """Emit lines until the run has a result and all its processes have been read to the end."""
        missing: list[str] = []
        async with open_store(self._uri) as store, anyio.create_task_group() as tasks:
            result = await self._start_readers(store, tasks, emit, after, missing)
        return {**_summary(result), "missing": missing}

    async def read_some(self, after: Cursor) -> Sequence[Event]:
        """Return the first lines after the cursor of the first process that has any."""
        async with open_store(self._uri) as store:
            handles = await self._handles(store)
        for slot, handle in handles.items():
            found: list[Event] = []
            async with _closing(self._executor.stream_logs(handle, n_lines=_ALL_LINES)) as lines:
                number = -1
                async for text in lines:
                    number += 1
                    if number > after.last_seq.get(str(slot), -1):
                        found.append(_line(slot, number, text))
                    if len(found) == _MOST_LINES:
                        break
            if found:
                return found
        return []

    async def _start_readers(
        self,
        store: Store,
        tasks: TaskGroup,
        emit: Callable[[Sequence[Event]], None],
        after: Cursor,
        missing: list[str],
    ) -> RunResult:
        """Start one for each process there is or will be; return the run's result once there is one."""
        known: set[Slot] = set()
        listed: list[str] = []
        while True:
            try:
                result = await read_result(store)
                if (keys := [key async for key in store.list("calls/")]) != listed:
                    handles = await self._handles(store)
                    listed = keys
                    for slot in handles.keys() - known:
                        first = after.last_seq.get(str(slot), -1) + 1
                        tasks.start_soon(self._read, slot, handles[slot], emit, first, missing)
                    known |= handles.keys()
                if result is not None:
                    return result
            except AiodilocoError as exc:
                _log.warning("cannot look for the replicas of %s, and try again: %s", self._uri, exc)
            await anyio.sleep(_LOOK_S)

    async def _handles(self, store: Store) -> Mapping[Slot, ReplicaHandle]:
        journal = await read_journal(store, self._n_replicas)
        return {slot: handle for slot, handle in sorted(journal.handles.items()) if slot.rank in self._ranks}

    async def _read(
        self,
        slot: Slot,
        handle: ReplicaHandle,
        emit: Callable[[Sequence[Event]], None],
        first: int,
        missing: list[str],
    ) -> None:
        """Emit the lines of one process from number `first` on, until it has ended."""
        while True:
            number = -1
            try:
                async with _closing(self._executor.stream_logs(handle, n_lines=_ALL_LINES, follow=True)) as lines:
                    async for text in lines:
                        number += 1
                        if number >= first:
                            emit([_line(slot, number, text)])
                            first = number + 1
                        if number % _LINES_AT_ONCE == 0:
                            await anyio.lowlevel.checkpoint()
            except HandleError as exc:
                missing.append(f"the output of {slot} is gone: {exc}")
                return
            except AiodilocoError as exc:
                _log.warning("cannot read the output of %s, and try again: %s", slot, exc)
            else:
                return
            await anyio.sleep(_AGAIN_S)


def _line(slot: Slot, number: int, text: str) -> Event:
    data: Mapping[str, JSON] = {"rank": slot.rank, "incarnation": slot.incarnation, "line": number, "text": text}
    return Event("line", str(slot), number, time.time(), data)


def _is_last(event: Event) -> bool:
    return event.kind == "run_ended" and event.writer.startswith("driver")


def _summary(result: RunResult) -> dict[str, JSON]:
    return {"run_id": result.run_id, "outcome": result.outcome.value, "reason": result.reason}


@contextlib.asynccontextmanager
async def _closing(lines: AsyncIterator[str]) -> AsyncGenerator[AsyncIterator[str], None]:
    try:
        yield lines
    finally:
        if isinstance(lines, AsyncGenerator):
            await lines.aclose()
