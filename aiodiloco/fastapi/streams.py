"""What the paths of streams do: events and logs, as server-sent events."""

# No `from __future__ import annotations`: FastAPI reads them.
import contextlib
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from typing import Annotated

from fastapi import Header, HTTPException, Query, Response

from aiodiloco.errors import RunNotFoundError
from aiodiloco.events import Cursor
from aiodiloco.fastapi.endpoints import RunId
from aiodiloco.fastapi.event_stream import EventStream
from aiodiloco.fastapi.feed import Source
from aiodiloco.fastapi.ids import cursor_of
from aiodiloco.fastapi.limits import Limits
from aiodiloco.fastapi.service import Service
from aiodiloco.fastapi.sources import EventLog, Output
from aiodiloco.run.launching import uri_of
from aiodiloco.run.record import RunRecord, read_record
from aiodiloco.store import open_store

__all__ = ["Streams"]

LastEventId = Annotated[str | None, Header(description="id of the last event received; browsers send it by themselves")]
After = Annotated[str | None, Query(description="the same, for who cannot send headers")]
Kinds = Annotated[list[str] | None, Query(description="only events of these kinds", max_length=64)]
Rank = Annotated[int | None, Query(description="only what this rank prints", ge=0, lt=1 << 31)]


class Streams:
    """The handlers, as bound methods.

    Args:
        service: Runs the feeds.
        limits: How many streams there may be, and how many ranks one may follow.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    async def events(
        self, run_id: RunId, last_event_id: LastEventId = None, after: After = None, kind: Kinds = None
    ) -> Response:
        """Stream the run's events: first all that there are, then new ones, until the run has ended."""
        record = await self._record(run_id)
        uri = uri_of(self._service.store, record.run_id)
        kinds = frozenset(kind) if kind else None
        return self._respond(("events", run_id), lambda: EventLog(uri), last_event_id or after, kinds)

    async def logs(
        self, run_id: RunId, last_event_id: LastEventId = None, after: After = None, rank: Rank = None
    ) -> Response:
        """Stream what the replicas print, line by line: first all there are, then new ones, until the run has ended."""
        record = await self._record(run_id)
        executor = self._service.executor
        if record.backend_name != executor.backend_name:
            raise HTTPException(409, f"run {run_id!r} is on the {record.backend_name!r} backend, this service is not")
        if rank is not None and rank >= record.n_replicas:
            raise HTTPException(422, f"run {run_id!r} has ranks 0 to {record.n_replicas - 1}, not {rank}")
        if rank is None and record.n_replicas > self._limits.max_log_ranks:
            raise HTTPException(422, f"run {run_id!r} has {record.n_replicas} replicas: name one, with ?rank=")
        ranks = range(record.n_replicas) if rank is None else (rank,)
        uri = uri_of(self._service.store, record.run_id)
        make = lambda: Output(executor, uri, record.n_replicas, ranks)  # noqa: E731 - called once, if at all
        return self._respond(("logs", run_id, rank), make, last_event_id or after, None)

    def _respond(
        self, key: Hashable, make: Callable[[], Source], event_id: str | None, kinds: frozenset[str] | None
    ) -> Response:
        feeds = self._service.feeds
        try:
            cursor = cursor_of(event_id) if event_id else Cursor()
        except ValueError as exc:
            raise HTTPException(422, str(exc)) from exc
        if feeds.num_streams >= self._limits.max_streams:
            raise HTTPException(503, f"{feeds.num_streams} streams are open, and more are not allowed: try again later")
        if event_id and (feed := feeds.find(key)) is not None and feed.has_told_all(cursor):
            return Response(status_code=204)  # to a browser: do not come back

        @contextlib.contextmanager
        def opened() -> Iterator[AsyncGenerator[bytes, None]]:
            with feeds.subscribed(key, make) as feed:
                yield feed.stream(cursor, kinds)

        return EventStream(opened)

    async def _record(self, run_id: str) -> RunRecord:
        async with open_store(uri_of(self._service.store, run_id)) as store:
            record = await read_record(store)
        if record is None:
            raise RunNotFoundError(f"there is no run {run_id!r} here")
        return record
