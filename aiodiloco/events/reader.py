"""Reading the event log: everything after a cursor, once or again and again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
from anyio import to_thread

from aiodiloco.errors import KeyNotFoundError
from aiodiloco.events.record import PREFIX, Cursor, Event, object_key, parse_key, writer_prefix
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.store import Store

__all__ = ["follow_events", "read_events", "read_pass"]

_log = logging.getLogger(__name__)

_OBJECTS_PER_PASS = 128  # per writer, so that a late follower of a long run needs memory for minutes of it, not days

_EVENTS_PER_TURN = 256  # of a follower, who may do something with each

T = TypeVar("T")

_Objects: TypeAlias = "dict[str, list[Event]]"  # key -> its events


class _Span(NamedTuple):
    """The keys after `after` and before `until`; None is the end."""

    after: str
    until: str | None


async def read_events(store: Store, cursor: Cursor | None = None) -> tuple[list[Event], Cursor]:
    """Return all events after `cursor`, by writer and seq, and the cursor after them.

    Takes one LIST request per writer (and a new one for every 128 objects), never for what was read before. An object
    that cannot be parsed is logged and passed over.

    Args:
        store: An open store, rooted at the run.
        cursor: Where an earlier reading stopped; None reads from the beginning.

    Raises:
        StoreError: the store could not be read.
    """
    passes: list[list[Event]] = []
    cursor = cursor or Cursor()
    while True:
        found, cursor, complete = await read_pass(store, cursor)
        passes.append(found)
        if complete:
            return await _in_worker(partial(_by_writer, passes)), cursor


async def follow_events(
    store: Store, cursor: Cursor | None = None, *, poll_s: float = 0.2
) -> AsyncGenerator[Event, None]:
    """Iterate over all events after `cursor` and then, without end, over new ones as they are written.

    Those of one writer come in order, each exactly once. To resume later, in another process even, keep
    `cursor.after(event)`. Break out, cancel or set a deadline at will: nothing is left running.

    Args:
        store: An open store, rooted at the run.
        cursor: Where an earlier reading stopped; None reads from the beginning.
        poll_s: Seconds between two looks when nothing is new, > 0.

    Raises:
        StoreError: the store could not be read.
    """
    if not 0 < poll_s < float("inf"):
        raise ValueError(f"poll_s must be a number of seconds > 0, not {poll_s!r}")
    cursor = cursor or Cursor()
    while True:
        found, cursor, complete = await read_pass(store, cursor)
        for number, event in enumerate(found):
            if number % _EVENTS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
            yield event
        if complete:
            await anyio.sleep(poll_s)


async def read_pass(store: Store, cursor: Cursor) -> tuple[list[Event], Cursor, bool]:
    """Return new events, the cursor after them, and whether they are all there were.

    At most 128 objects of each writer, so the memory it takes is bounded however long the log is.

    Raises:
        StoreError: the store could not be read.
    """
    spans = _spans(cursor)
    listed = await map_concurrently(partial(_list_span, store), spans)
    objects: _Objects = {}
    await _fetch(store, listed, objects)
    # A listing is no snapshot: it can show an object and miss an earlier one, written while it ran. One made now,
    # after the later one was seen, shows both; what it misses was deleted.
    if not any(listed):
        return [], cursor, True
    if torn := await _in_worker(lambda: [i for i, keys in enumerate(listed) if _has_gap(keys, objects, cursor)]):
        for i, keys in zip(
            torn, await map_concurrently(partial(_list_span, store), [spans[i] for i in torn]), strict=True
        ):
            listed[i] = keys
        await _fetch(store, listed, objects)
    keys = list(itertools.chain.from_iterable(listed))
    found = await _in_worker(lambda: (_new_events(keys, objects, cursor), _advance(cursor, keys)))
    return *found, all(len(k) < _OBJECTS_PER_PASS for k in listed)


async def _in_worker(work: Callable[[], T]) -> T:
    """Return `work()`, run in a worker thread: of 10^5 events, anything takes longer than an event loop should."""
    return await to_thread.run_sync(work, abandon_on_cancel=True)


def _spans(cursor: Cursor) -> list[_Span]:
    """Return the spans of keys that may hold something new.

    Before the first known writer, and after each one's last object up to the next known writer: new objects and new
    writers are all in there, and nothing that was read before. One LIST request for each.
    """
    known = sorted(cursor.last_seq, key=writer_prefix)
    starts = [PREFIX, *(object_key(writer, cursor.last_seq[writer]) for writer in known)]
    ends = [*(writer_prefix(writer) for writer in known), None]
    return [_Span(after, until) for after, until in zip(starts, ends, strict=True)]


async def _list_span(store: Store, span: _Span) -> list[str]:
    """Return the keys of the first event objects in the span, in order."""
    keys: list[str] = []
    listing = store.list(PREFIX, start_after=span.after)
    try:
        async for key in listing:
            if (span.until is not None and key >= span.until) or len(keys) == _OBJECTS_PER_PASS:
                break
            if parse_key(key) is not None:
                keys.append(key)
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()  # not left to the garbage collector, which trio warns of
    return keys


async def _fetch(store: Store, listed: list[list[str]], objects: _Objects) -> None:
    """Read the objects under `listed` keys that are not in `objects` yet, and add their events to it."""
    keys = [key for keys in listed for key in keys if key not in objects]
    parsing = anyio.CapacityLimiter(1)  # each thread that computes keeps the event loop waiting for its turn
    objects.update(zip(keys, await map_concurrently(partial(_read_object, store, parsing), keys), strict=True))


async def _read_object(store: Store, parsing: anyio.CapacityLimiter, key: str) -> list[Event]:
    try:
        data = await store.get(key)
    except KeyNotFoundError:  # deleted since it was listed
        return []
    return await to_thread.run_sync(_parse_object, key, data, abandon_on_cancel=True, limiter=parsing)


def _parse_object(key: str, view: memoryview) -> list[Event]:
    """Return the events in an object; log what is no event of its writer."""
    data = bytes(view)
    events: list[Event] = []
    writer, last_seq = parse_key(key) or ("", -1)
    bad: list[str] = []
    for line in data.splitlines():
        try:
            event = Event.from_json(line)
        except ValueError as exc:
            bad.append(str(exc))
            continue
        if event.writer == writer and event.seq <= last_seq:
            events.append(event)
        else:
            bad.append(f"event {event.seq} of {event.writer!r} does not belong here")
    if bad:
        _log.warning("%s: passed over %d lines that are damaged; the first: %s", key, len(bad), bad[0])
    return events


def _has_gap(keys: list[str], objects: _Objects, cursor: Cursor) -> bool:
    """Return whether events are missing between what was read before and what the objects under `keys` hold."""
    last_seq = dict(cursor.last_seq)
    for key in keys:
        for event in objects[key]:
            if event.seq > last_seq.get(event.writer, -1) + 1:
                return True
            last_seq[event.writer] = max(event.seq, last_seq.get(event.writer, -1))
    return False


def _new_events(keys: list[str], objects: _Objects, cursor: Cursor) -> list[Event]:
    """Return the events after `cursor`, in order; a write that was repeated holds some a second time."""
    last_seq = dict(cursor.last_seq)
    events: list[Event] = []
    for event in itertools.chain.from_iterable(objects[key] for key in keys):
        if event.seq > last_seq.get(event.writer, -1):
            last_seq[event.writer] = event.seq
            events.append(event)
    return events


def _by_writer(passes: list[list[Event]]) -> list[Event]:
    """Return the events of several passes by writer and seq. Not sorted: that would hold all threads, for long."""
    found: dict[str, list[Event]] = {}
    for event in itertools.chain.from_iterable(passes):  # those of one writer come in order
        found.setdefault(event.writer, []).append(event)
    return list(itertools.chain.from_iterable(found[writer] for writer in sorted(found)))


def _advance(cursor: Cursor, keys: list[str]) -> Cursor:
    """Return the cursor after the objects under `keys`, also where their events could not be read."""
    last_seq = dict(cursor.last_seq)
    last_seq.update(parsed for key in keys if (parsed := parse_key(key)) is not None)
    return Cursor(last_seq)
