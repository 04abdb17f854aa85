"""`EventWriter`: events from any thread of a process, flushed to the store in the background."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

import anyio
from anyio import to_thread

from aiodiloco.errors import StoreError
from aiodiloco.events.plain import hold, plain
from aiodiloco.events.record import check_writer, object_key, parse_key, writer_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

    from aiodiloco.store import Store

__all__ = ["EventWriter"]

_log = logging.getLogger(__name__)

_OPEN_S = 30.0
_FINAL_FLUSH_S = 5.0
_MAX_BUFFERED = 100_000  # events: some 10 MB, and ten seconds of a dead store at 10^4 events/s


class _Emitted(NamedTuple):
    kind: str
    time: float
    data: dict[str, object]


class EventWriter:
    """Appends the events of one process to the log of a run.

    `emit` only notes the event; a background task writes what came together as one object every `flush_s`, and the
    rest on leaving the context, also when that is cancelled. While the store fails, events are kept and written later,
    up to 100 000; what comes beyond is counted and reported by an event `events_dropped` with its `count`.

        async with EventWriter(store, "0-0") as events:
            events.emit("step", step=1, loss=loss)

    Args:
        store: An open store, rooted at the run.
        writer: Name of this process in the log, one key component; no other process may write under it at the same
            time. One that did earlier is continued, by an EventWriter of its own: each is entered once.
        flush_s: Seconds between two writes, > 0.
    """

    def __init__(self, store: Store, writer: str, *, flush_s: float = 0.5) -> None:
        if not 0 < flush_s < float("inf"):
            raise ValueError(f"flush_s must be a number of seconds > 0, not {flush_s!r}")
        self._store = store
        self._writer = check_writer(writer)
        self._flush_s = flush_s
        self._lock = threading.Lock()  # guards the four below, which emit touches from any thread
        self._emitted: deque[_Emitted] = deque()
        self._num_buffered = 0
        self._num_dropped = 0
        self._closed = False
        self._lines: list[bytes] = []  # encoded, not yet written
        self._next_seq = 0
        self._tasks: TaskGroup | None = None
        self._was_entered = False

    def emit(self, kind: str, /, **data: object) -> None:
        """Note an event; never blocks and never fails, whatever the values; callable from any thread.

        Args:
            kind: What happened.
            data: Numbers, strings, None, lists and dicts of these, or scalars with an `.item()` such as 0-d tensors,
                which are fetched from their device later, in another thread. Anything else is stored as its `repr`.
        """
        event = _Emitted(kind, time.time(), {name: hold(value) for name, value in data.items()})
        with self._lock:
            if self._closed:
                _log.warning("event %s of %s came after the log was closed and is lost", kind, self._writer)
            elif self._num_buffered < _MAX_BUFFERED:
                self._emitted.append(event)
                self._num_buffered += 1
            else:
                self._num_dropped += 1

    async def __aenter__(self) -> Self:
        """Find where an earlier writer of this name stopped, and start to write in the background.

        Raises:
            RuntimeError: entered before.
            StoreError: the store could not be read, or did not answer within 30 s.
        """
        if self._was_entered:
            raise RuntimeError(
                f"the event writer {self._writer!r} was entered before: make another, which continues after its events"
            )
        self._was_entered = True
        with anyio.move_on_after(_OPEN_S) as scope:
            await self._find_next_seq()
        if scope.cancelled_caught:
            raise StoreError(
                f"{self._store.uri} does not answer: listing {writer_prefix(self._writer)} took longer than {_OPEN_S} s"
            )
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._flush_forever)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()
                # Given the body's exception, the group would wrap it; the flusher itself raises none.
                await self._tasks.__aexit__(None, None, None)
        finally:
            with self._lock:
                self._closed = True
            with anyio.move_on_after(_FINAL_FLUSH_S, shield=True):
                await self._flush()
            if lost := self._num_buffered + self._num_dropped:
                _log.error("the last %d events of %s are lost: the store did not take them", lost, self._writer)

    async def _find_next_seq(self) -> None:
        async for key in self._store.list(writer_prefix(self._writer)):
            if (parsed := parse_key(key)) is not None:
                self._next_seq = parsed[1] + 1

    async def _flush_forever(self) -> None:
        while True:
            await anyio.sleep(self._flush_s)
            await self._flush()

    async def _flush(self) -> None:
        """Write what there is as one object. If it fails, or is cancelled, the next flush writes it again, and more.

        A write that failed may have succeeded: then the next object repeats its events, and readers, who go by seq,
        pass over them.
        """
        try:
            await self._encode()
            if not self._lines:
                return
            lines = self._lines
            key, body = object_key(self._writer, self._next_seq - 1), b"".join(lines)
            written = await self._store.put_if_absent(key, body) or bytes(await self._store.get(key)) == body
        except Exception:  # noqa: BLE001 - a log that cannot be written must not end the training it tells of
            _log.warning("could not write %d events of %s; kept", self._num_buffered, self._writer, exc_info=True)
            return
        if not written:
            _log.error("%s exists: another process logs as %r, and events of both are lost", key, self._writer)
        self._lines = []
        with self._lock:
            self._num_buffered -= len(lines)

    async def _encode(self) -> None:
        """Turn what was emitted into lines, giving each its seq."""
        with self._lock:
            dropped, self._num_dropped = self._num_dropped, 0
            if dropped:
                self._emitted.append(_Emitted("events_dropped", time.time(), {"count": dropped}))
                self._num_buffered += 1
            events = list(self._emitted)
        if not events:
            return
        lines = await to_thread.run_sync(_encode_lines, self._writer, self._next_seq, events, abandon_on_cancel=True)
        with self._lock:  # only now, after the await: a cancelled encoding loses nothing
            for _ in events:
                self._emitted.popleft()
        self._lines += lines
        self._next_seq += len(lines)


def _encode_lines(writer: str, first_seq: int, events: Sequence[_Emitted]) -> list[bytes]:
    return [_encode_line(writer, seq, event) for seq, event in enumerate(events, first_seq)]


def _encode_line(writer: str, seq: int, event: _Emitted) -> bytes:
    fields = {
        "kind": str(plain(event.kind)),
        "writer": writer,
        "seq": seq,
        "time": event.time,
        "data": plain(event.data),
    }
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode() + b"\n"
