"""What containers print, kept and served."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import Changed, Container, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from aiodiloco.testing.modal.dispatch import Caller

__all__ = ["LogService", "LogStore"]

_UNSPECIFIED = api_pb2.FILE_DESCRIPTOR_UNSPECIFIED


class _Filters(Protocol):
    """The fields by which every request about logs narrows them down."""

    app_id: str
    function_id: str
    function_call_id: str
    task_id: str
    search_text: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One line, with what it came from."""

    number: int
    app_id: str
    function_id: str
    call_id: str
    input_id: str
    task_id: str
    source: api_pb2.FileDescriptor.ValueType
    text: str
    timestamp_ns: int

    def matches(self, filters: _Filters, source: api_pb2.FileDescriptor.ValueType) -> bool:
        return (
            self.app_id == filters.app_id
            and filters.function_id in ("", self.function_id)
            and filters.function_call_id in ("", self.call_id)
            and filters.task_id in ("", self.task_id)
            and source in (_UNSPECIFIED, self.source)
            and filters.search_text in self.text
        )

    def to_batch(self) -> api_pb2.TaskLogsBatch:
        item = api_pb2.TaskLogs(
            data=self.text,
            timestamp=self.timestamp_ns / 1e9,
            timestamp_ns=self.timestamp_ns,
            file_descriptor=self.source,
            function_call_id=self.call_id,
            input_id=self.input_id,
            container_id=self.task_id,
        )
        return api_pb2.TaskLogsBatch(
            task_id=self.task_id,
            function_id=self.function_id,
            input_id=self.input_id,
            entry_id=str(self.number),
            items=[item],
        )


class LogStore:
    """All lines of all containers, in the order in which they came."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.changed = Changed()
        self._unfinished: dict[tuple[str, bool], bytes] = {}

    def add(self, container: Container, data: bytes, *, is_stderr: bool) -> None:
        """Take in what a container wrote; a line without its end waits for it."""
        key = (container.id, is_stderr)
        *lines, rest = (self._unfinished.pop(key, b"") + data).split(b"\n")
        if rest:
            self._unfinished[key] = rest
        self._append(container, [line + b"\n" for line in lines], is_stderr=is_stderr)

    def finish(self, container: Container) -> None:
        """Take in the lines that will not be ended any more."""
        for is_stderr in (False, True):
            if rest := self._unfinished.pop((container.id, is_stderr), b""):
                self._append(container, [rest], is_stderr=is_stderr)

    def _append(self, container: Container, lines: Iterable[bytes], *, is_stderr: bool) -> None:
        entry = container.attempt.input if container.attempt else None
        for line in lines:
            self.entries.append(
                _Entry(
                    number=len(self.entries) + 1,
                    app_id=container.function.app.id,
                    function_id=container.function.id,
                    call_id=entry.call.id if entry else "",
                    input_id=entry.id if entry else "",
                    task_id=container.id,
                    source=api_pb2.FILE_DESCRIPTOR_STDERR if is_stderr else api_pb2.FILE_DESCRIPTOR_STDOUT,
                    text=line.decode("utf-8", errors="replace"),
                    timestamp_ns=time.time_ns(),
                )
            )
        self.changed.notify()


class LogService:
    """RPCs about logs."""

    def __init__(self, state: State, store: LogStore, *, streams_replay: bool) -> None:
        self._state = state
        self._store = store
        self._streams_replay = streams_replay

    async def app_get_logs(
        self, request: api_pb2.AppGetLogsRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """Stream lines after `last_entry_id`, until the time is over or the app has ended."""
        entries = self._store.entries
        app = self._state.apps.get(request.app_id)
        seen = int(request.last_entry_id or 0) if self._streams_replay or request.last_entry_id else len(entries)
        yield api_pb2.TaskLogsBatch(entry_id=str(seen))
        deadline = time.monotonic() + request.timeout
        while True:
            while seen < len(entries):
                entry = entries[seen]
                seen += 1
                if entry.matches(request, request.file_descriptor):
                    yield entry.to_batch()
            if app is None or app.stopped:
                yield api_pb2.TaskLogsBatch(entry_id=str(seen), app_done=True)
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            await self._store.changed.wait_until(self._has_more(seen, app.id), within_s=left_s)

    def _has_more(self, seen: int, app_id: str) -> Callable[[], bool]:
        return lambda: len(self._store.entries) > seen or self._state.apps[app_id].stopped

    async def app_fetch_logs(
        self, request: api_pb2.AppFetchLogsRequest, _caller: Caller
    ) -> api_pb2.AppFetchLogsResponse:
        """Return the last `limit` lines of a time range."""
        found = [
            entry for entry in self._between(request.since, request.until) if entry.matches(request, request.source)
        ]
        return api_pb2.AppFetchLogsResponse(batches=[entry.to_batch() for entry in found[-(request.limit or 20_000) :]])

    async def app_count_logs(
        self, request: api_pb2.AppCountLogsRequest, _caller: Caller
    ) -> api_pb2.AppCountLogsResponse:
        """Return how many lines there are, by interval of `bucket_secs`."""
        width_s = request.bucket_secs or 1
        counts: Counter[tuple[int, int]] = Counter()
        for entry in self._between(request.since, request.until):
            if entry.matches(request, request.source):
                counts[math.floor(entry.timestamp_ns / 1e9 / width_s) * width_s, entry.source] += 1
        return api_pb2.AppCountLogsResponse(
            app_id=request.app_id,
            buckets=[
                api_pb2.AppCountLogsResponse.LogBucket(
                    bucket_start_at=Timestamp(seconds=start),
                    stdout_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDOUT],
                    stderr_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDERR],
                )
                for start in sorted({start for start, _ in counts})
            ],
        )

    def _between(self, since: Timestamp, until: Timestamp) -> list[_Entry]:
        until_ns = until.ToNanoseconds() or time.time_ns()
        return [entry for entry in self._store.entries if since.ToNanoseconds() <= entry.timestamp_ns <= until_ns]
