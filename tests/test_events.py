"""The event log: nothing is lost, nothing is read twice, and nothing that is logged can end the training."""

from __future__ import annotations

import enum
import gc
import json
import logging
import math
import threading
import time
import typing
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import pytest
import torch
from anyio import to_thread
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.errors import StoreError
from aiodiloco.events import Cursor, Event, EventWriter, follow_events, read_events
from aiodiloco.events import reader as reader_module
from aiodiloco.events import writer as writer_module
from aiodiloco.events.record import object_key, parse_key
from aiodiloco.store import Buffer, FileStore, MemoryStore, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from aiodiloco.records import JSON

QUICK_S = 0.01  # between flushes, and between looks, of these tests


async def _keys(store: Store) -> list[str]:
    return [key async for key in store.list()]


async def _write(store: Store, writer: str, count: int, *, flush_every: int = 10**9) -> None:
    """Log `count` events that say their number, as one object for each `flush_every` of them."""
    for first in range(0, count, flush_every):
        async with EventWriter(store, writer, flush_s=60) as events:
            for number in range(first, min(first + flush_every, count)):
                events.emit("step", number=number)


def _numbers(events: list[Event], writer: str) -> list[JSON]:
    return [event.data["number"] for event in events if event.writer == writer]


async def _follow(store: Store, count: int, cursor: Cursor | None = None) -> list[Event]:
    """Return the first `count` events a follower sees."""
    found: list[Event] = []
    with anyio.fail_after(20):
        async with aclosing(follow_events(store, cursor, poll_s=QUICK_S)) as following:
            async for event in following:
                found.append(event)
                if len(found) == count:
                    break
    return found


class Faulty(MemoryStore):
    """Counts LIST requests, and fails, hangs or loses the reply of writes while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = "works"
        self.failed = anyio.Event()
        self.num_lists = 0

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        if self.mode == "works":
            return await super().put_if_absent(key, data)
        if self.mode == "hangs":
            await anyio.sleep_forever()
        if self.mode == "loses replies":
            await super().put_if_absent(key, data)
        self.failed.set()
        raise StoreError(f"cannot write {key}")

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        self.num_lists += 1
        return super().list(prefix, start_after=start_after)


# ---------------------------------------------------------------- values


class Colour(enum.StrEnum):
    red = "RED"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class EndlessItem:
    def item(self) -> EndlessItem:
        return self


_cycle: list[object] = []
_cycle.append(_cycle)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (1.5, 1.5),
        ("ä\ud800\n", "ä\ud800\n"),
        (Colour.red, "RED"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(7), 7),
        (torch.tensor(math.nan), "nan"),
        (torch.tensor(0.25, requires_grad=True) * 2, 0.5),
        (torch.tensor([2.5]), 2.5),
        (torch.zeros(2), "tensor([0., 0.])"),
        (torch.zeros(0), "tensor([])"),
        ([1, (2.0, torch.tensor(3))], [1, [2.0, 3]]),
        ({"a": torch.tensor(1.0), 2: {"b": math.inf}}, {"a": 1.0, "2": {"b": "inf"}}),
        (1 << 20_000, "0x1" + "0" * 997),
        (b"bytes", "b'bytes'"),
        (ValueError("x"), "ValueError('x')"),
        (Unspeakable(), "<Unspeakable: RuntimeError>"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_values_are_stored_as_json(value: object, stored: JSON) -> None:
    """Numbers and strings as themselves, scalars of any library as numbers, what JSON lacks as text."""
    store = MemoryStore()
    async with EventWriter(store, "0-0") as events:
        events.emit("step", value=value)
    (event,), _ = await read_events(store)
    assert event.data == {"value": stored}
    assert type(event.data["value"]) is type(stored)


@pytest.mark.parametrize("value", [_cycle, EndlessItem(), object(), {object(): 1}, lambda: None], ids=repr)
async def test_no_value_stops_the_log(value: object) -> None:
    """Neither cycles nor strangers; the events around them are unharmed."""
    store = MemoryStore()
    async with EventWriter(store, "0-0") as events:
        events.emit("before")
        events.emit("odd", value=value)
        events.emit("after")
    found, _ = await read_events(store)
    assert [event.kind for event in found] == ["before", "odd", "after"]


async def test_a_scalar_is_stored_as_it_was_when_emitted() -> None:
    """Though the step after writes to the same memory, and the graph behind it is let go."""
    store = MemoryStore()
    loss, losses = torch.tensor(1.0), {"a": torch.tensor(2.0)}
    history = [1]
    async with EventWriter(store, "0-0") as events:
        events.emit("step", loss=loss, losses=losses, history=history)
        loss.add_(10)
        losses["a"].add_(10)
        history.append(2)
    (event,), _ = await read_events(store)
    assert event.data == {"loss": 1.0, "losses": {"a": 2.0}, "history": [1]}


async def test_emit_leaves_waiting_for_a_device_to_another_thread() -> None:
    """`.item()` runs when the log is flushed, and not in the caller's thread."""
    threads = []

    class OnDevice:
        def item(self) -> float:
            threads.append(threading.current_thread())
            return 0.5

    async with EventWriter(MemoryStore(), "0-0") as events:
        events.emit("step", loss=OnDevice())
        assert threads == []
    assert threads
    assert threading.current_thread() not in threads


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(kind=st.text(), seq=st.integers(0), time=st.floats(0, 1e12), data=st.dictionaries(st.text(), _JSON))
def test_event_comes_back_from_its_line(kind: str, seq: int, time: float, data: dict[str, JSON]) -> None:
    """Equal, whatever it says, and on a single line."""
    event = Event(kind, "0-0", seq, time, data)
    assert len(event.to_json().splitlines()) == 1
    assert Event.from_json(event.to_json()) == event
    assert hash(Event.from_json(event.to_json())) == hash(event)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\xff\xfe", b"{}", b"[]", b"null", b"torn", b"[" * 100_000, b'{"kind": 1}',
        b'{"kind": "a", "writer": "w", "seq": 0, "time": 0}, {}',
        b'{"kind": 1, "writer": "w", "seq": 0, "time": 0, "data": {}}',
        b'{"kind": "a", "writer": "w", "seq": "0", "time": 0, "data": {}}',
        b'{"kind": "a", "writer": "w", "seq": 0, "time": "now", "data": {}}',
        b'{"kind": "a", "writer": "w", "seq": 0, "time": 0, "data": []}',
        b'{"kind": "a", "writer": "w", "seq": 0, "time": 0, "data": {}, "more": 1}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not an event"):
        Event.from_json(line)


def test_annotations_can_be_resolved_at_run_time() -> None:
    """As web frameworks do to make a schema of a dataclass."""
    assert set(typing.get_type_hints(Event)) == {"kind", "writer", "seq", "time", "data"}
    assert set(typing.get_type_hints(Cursor)) == {"last_seq"}


def test_cursor_comes_back_from_json() -> None:
    """And moves with what was read, never backwards."""
    cursor = Cursor().after(Event("a", "0-0", 4, 0.0), Event("a", "1-0", 0, 0.0), Event("a", "0-0", 3, 0.0))
    assert cursor.last_seq == {"0-0": 4, "1-0": 0}
    assert Cursor.from_json(cursor.to_json()) == cursor
    assert Cursor.from_json("{}") == Cursor()


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '{"0-0": -1}', '{"0-0": "1"}', '{"0-0": true}', '{"a/b": 1}', '{"": 1}']
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an event cursor"):
        Cursor.from_json(text)


def test_keys_of_objects_sort_as_their_numbers() -> None:
    """And name writer and last event; other keys below `events/` are not taken for them."""
    numbers = [0, 9, 10, 99_999_999, 100_000_000, 10**11]
    keys = [object_key("0-0", number) for number in numbers]
    assert sorted(keys) == keys
    assert [parse_key(key) for key in keys] == [("0-0", number) for number in numbers]
    for key in ("events/x", "events/w/1.jsonl", "events/w/000000000001.json", "events/w/x/000000000001.jsonl", "other"):
        assert parse_key(key) is None


# ---------------------------------------------------------------- writing


async def test_events_are_flushed_at_intervals_and_on_leaving() -> None:
    """One object for what came together; none when there is nothing."""
    store = MemoryStore()
    async with EventWriter(store, "0-0", flush_s=QUICK_S) as events:
        for number in range(5):
            events.emit("step", number=number)
        found = await _follow(store, 5)
        assert await _keys(store) == ["events/0-0/000000000004.jsonl"]
        events.emit("last", number=5)
    found, _ = await read_events(store)
    assert _numbers(found, "0-0") == [0, 1, 2, 3, 4, 5]
    assert [event.seq for event in found] == [0, 1, 2, 3, 4, 5]
    assert [event.time for event in found] == sorted(event.time for event in found)
    before = await _keys(store)
    async with EventWriter(store, "1-0", flush_s=QUICK_S):
        await anyio.sleep(3 * QUICK_S)  # several intervals of nothing
    assert await _keys(store) == before


async def test_events_come_from_any_thread() -> None:
    """Each exactly once, in the order of its own thread."""
    store = MemoryStore()

    def train(thread: int) -> None:
        for number in range(500):
            events.emit("step", number=number, thread=thread)

    async with EventWriter(store, "0-0", flush_s=QUICK_S) as events, anyio.create_task_group() as tasks:
        for thread in range(4):
            tasks.start_soon(to_thread.run_sync, train, thread)
    found, _ = await read_events(store)
    assert [event.seq for event in found] == list(range(2000))
    for thread in range(4):
        assert [event.data["number"] for event in found if event.data["thread"] == thread] == list(range(500))


async def test_an_error_or_cancellation_of_the_body_loses_no_event_and_is_passed_on() -> None:
    """As it is, not in a group."""
    store = MemoryStore()
    with pytest.raises(ValueError, match="training failed"):
        async with EventWriter(store, "0-0") as events:
            events.emit("step", number=0)
            raise ValueError("training failed")
    with anyio.CancelScope() as scope:
        async with EventWriter(store, "1-0") as events:
            events.emit("step", number=0)
            scope.cancel()
            await anyio.sleep(10)
    assert scope.cancelled_caught
    found, _ = await read_events(store)
    assert [event.writer for event in found] == ["0-0", "1-0"]


async def test_cancelling_anywhere_loses_no_event_and_repeats_none() -> None:
    """At each step of entering, encoding, writing, leaving; also by asyncio's own cancel."""
    for steps in range(60):
        store = MemoryStore()
        emitted = 0

        async def train(store: Store = store) -> None:
            nonlocal emitted
            async with EventWriter(store, "0-0", flush_s=1e-6) as events:
                while True:
                    events.emit("step", number=emitted)
                    emitted += 1
                    await checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(train)
            for _ in range(steps):
                await checkpoint()
            tasks.cancel_scope.cancel()
        found, _ = await read_events(store)
        assert _numbers(found, "0-0") == list(range(emitted))


async def test_a_writer_of_the_same_name_continues() -> None:
    """After the last event of the one before."""
    store = MemoryStore()
    await _write(store, "0-0", 7, flush_every=3)
    assert await _keys(store) == [object_key("0-0", seq) for seq in (2, 5, 6)]
    found, _ = await read_events(store)
    assert [event.seq for event in found] == _numbers(found, "0-0") == list(range(7))


@pytest.mark.parametrize("mode", ["fails", "loses replies"])
async def test_a_failing_store_costs_no_event(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """Events are kept, with a warning, and written once the store works; each is read once."""
    store = Faulty()
    async with EventWriter(store, "0-0", flush_s=QUICK_S) as events:
        for number in range(6):
            events.emit("step", number=number)
            if number % 2 == 0:
                store.mode, store.failed = mode, anyio.Event()
                with anyio.fail_after(5):
                    await store.failed.wait()
                store.mode = "works"
    found, _ = await read_events(store)
    assert _numbers(found, "0-0") == [0, 1, 2, 3, 4, 5]
    assert "could not write" in caplog.text


async def test_what_the_buffer_cannot_hold_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log itself says how many events are missing, and where."""
    monkeypatch.setattr(writer_module, "_MAX_BUFFERED", 10)
    store = MemoryStore()
    async with EventWriter(store, "0-0", flush_s=QUICK_S) as events:
        for number in range(25):
            events.emit("step", number=number)
        await _follow(store, 11)
        events.emit("step", number=25)
    found, _ = await read_events(store)
    assert _numbers(found[:10], "0-0") == list(range(10))
    assert (found[10].kind, found[10].data) == ("events_dropped", {"count": 15})
    assert _numbers(found[11:], "0-0") == [25]


@pytest.mark.parametrize("mode", ["fails", "hangs"])
async def test_a_dead_store_ends_no_training_and_holds_no_exit(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving takes a bounded time and says what is lost."""
    monkeypatch.setattr(writer_module, "_FINAL_FLUSH_S", 0.05)
    store = Faulty()
    with anyio.fail_after(5):
        async with EventWriter(store, "0-0", flush_s=QUICK_S) as events:
            store.mode = mode
            for _ in range(3):
                events.emit("step")
                await anyio.sleep(2 * QUICK_S)  # let some flushes fail
    assert "the last 3 events of 0-0 are lost" in caplog.text


async def test_an_event_after_the_end_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """By a training thread that was not waited for; it gets no error."""
    async with EventWriter(MemoryStore(), "0-0") as events:
        pass
    events.emit("late")
    assert "event late of 0-0 came after the log was closed" in caplog.text


async def test_two_processes_of_one_name_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """By the second to write the same object, as an error in the log."""
    store = MemoryStore()
    async with EventWriter(store, "0-0", flush_s=60) as one, EventWriter(store, "0-0", flush_s=60) as two:
        one.emit("step", number=1)
        two.emit("step", number=2)
    assert "another process logs as '0-0'" in caplog.text


async def test_a_writer_is_entered_once() -> None:
    """Entered a second time, nested or later, it would drop what it is given: it says so instead."""
    store = MemoryStore()
    writer = EventWriter(store, "0-0", flush_s=60)
    async with writer:
        with pytest.raises(RuntimeError, match="the event writer '0-0' was entered before: make another"):
            await writer.__aenter__()
        writer.emit("step", number=0)
    with pytest.raises(RuntimeError, match="the event writer '0-0' was entered before: make another"):
        async with writer:
            pass
    found, _ = await read_events(store)
    assert _numbers(found, "0-0") == [0]


async def test_a_store_that_does_not_answer_refuses_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bounded time, and by name; an error of the store's own passes as it is."""

    class Silent(MemoryStore):
        async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
            await anyio.sleep_forever()
            yield ""

    class TimesOut(MemoryStore):
        async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
            raise TimeoutError("the store's own")
            yield ""

    monkeypatch.setattr(writer_module, "_OPEN_S", 0.05)
    with anyio.fail_after(5), pytest.raises(StoreError, match=r"memory://.* does not answer: listing .*0-0.* 0.05 s"):
        async with EventWriter(Silent("silent"), "0-0"):
            pass
    with pytest.raises(TimeoutError, match="the store's own"):
        async with EventWriter(TimesOut(), "0-0"):
            pass


@pytest.mark.parametrize("writer", ["", "a/b", "..", "a b"])
def test_writers_that_are_no_component_are_refused(writer: str) -> None:
    with pytest.raises(ValueError, match="not valid"):
        EventWriter(MemoryStore(), writer)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
async def test_impossible_intervals_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="flush_s must be"):
        EventWriter(MemoryStore(), "0-0", flush_s=seconds)
    with pytest.raises(ValueError, match="poll_s must be"):
        await anext(follow_events(MemoryStore(), poll_s=seconds))


# ---------------------------------------------------------------- reading


async def test_reading_by_cursor_gives_each_event_once(tmp_path: Path) -> None:
    """However the reading is divided; with writers that come later and sort before, between and after the known."""
    async with FileStore(tmp_path) as store:
        cursor, read = Cursor(), []
        for writers in (["5-0"], ["5-0", "0-0"], ["5-0-1", "5-0", "9-0"], [], ["5-1"], ["0-0", "9-0"]):
            for writer in writers:
                await _write(store, writer, 5, flush_every=2)
            found, cursor = await read_events(store, Cursor.from_json(cursor.to_json()))
            assert {event.writer for event in found} == set(writers)
            read += found
        whole, last = await read_events(store)
        assert cursor == last
        assert sorted(read, key=lambda event: (event.writer, event.seq)) == whole
        assert len({(event.writer, event.seq) for event in read}) == len(read) == 45


async def test_a_look_lists_once_per_writer_and_never_what_was_read() -> None:
    """A span of keys after each writer's last object, and one before the first."""
    store = Faulty()
    for number in range(20):
        await _write(store, f"{number:02d}-0", 30, flush_every=1)
    _, cursor = await read_events(store)
    listed: list[str] = []
    list_ = store.list

    async def spy(prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        async for key in list_(prefix, start_after=start_after):
            listed.append(key)
            yield key

    store.list = spy  # type: ignore[method-assign]  # only to see which keys are asked for
    store.num_lists = 0
    await _write(store, "07-0", 1)
    store.num_lists, listed[:] = 0, []
    found, cursor = await read_events(store, cursor)
    assert [(event.writer, event.seq) for event in found] == [("07-0", 30)]
    assert store.num_lists == 21
    ends = [object_key(f"{number:02d}-0", 0) for number in range(20)]  # where the span of the writer before ends
    assert sorted(listed) == sorted([*ends, object_key("07-0", 30)])


async def test_followers_that_drop_and_resume_see_each_event_once() -> None:
    """Also in the middle of an object, in another process, while the writer goes on."""
    store = MemoryStore()
    read: list[Event] = []
    async with EventWriter(store, "0-0", flush_s=QUICK_S) as events:
        for number in range(60):
            events.emit("step", number=number)
        cursor = Cursor()
        for count in (1, 7, 30, 22):
            found = await _follow(store, count, Cursor.from_json(cursor.to_json()))
            cursor = cursor.after(*found)
            read += found
        events.emit("step", number=60)
        read += await _follow(store, 1, cursor)
    assert _numbers(read, "0-0") == list(range(61))


async def test_a_late_follower_reads_a_long_log_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes of a bounded number of objects, each event once."""
    monkeypatch.setattr(reader_module, "_OBJECTS_PER_PASS", 8)
    store = Faulty()
    for writer in ("0-0", "1-0"):
        await _write(store, writer, 100, flush_every=3)
    store.num_lists = 0
    found = await _follow(store, 200)
    assert store.num_lists > 2 * 34 / 8
    assert _numbers(found, "0-0") == _numbers(found, "1-0") == list(range(100))
    found, cursor = await read_events(store)
    assert _numbers(found, "0-0") + _numbers(found, "1-0") == [*range(100), *range(100)]
    assert cursor.last_seq == {"0-0": 99, "1-0": 99}


async def test_an_object_missed_by_a_listing_is_still_read_in_its_turn() -> None:
    """A listing is no snapshot: written while it runs, a later object can appear without the one before."""
    store = Faulty()
    await _write(store, "0-0", 9, flush_every=3)
    list_ = store.list

    async def miss_the_second(prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        missing = {object_key("0-0", 5)} if store.num_lists == 0 else set()
        async for key in list_(prefix, start_after=start_after):
            if key not in missing:
                yield key

    store.num_lists = 0
    store.list = miss_the_second  # type: ignore[method-assign]  # the race, made certain
    found, _ = await read_events(store)
    assert _numbers(found, "0-0") == list(range(9))


async def test_deleted_objects_are_passed_over() -> None:
    """What a cleaner removed, before or while it is read, holds nobody up."""
    store = MemoryStore()
    await _write(store, "0-0", 9, flush_every=3)
    await store.delete(object_key("0-0", 2))
    found, cursor = await read_events(store)
    assert _numbers(found, "0-0") == [3, 4, 5, 6, 7, 8]
    assert await read_events(store, cursor) == ([], cursor)


async def test_damaged_objects_cost_their_own_events_alone(caplog: pytest.LogCaptureFixture) -> None:
    """They are named in a warning and passed over; readers go on."""
    store = MemoryStore()
    await _write(store, "0-0", 9, flush_every=3)
    whole = bytes(await store.get(object_key("0-0", 5)))
    foreign = json.loads(whole.splitlines()[0]) | {"writer": "1-0"}
    for damaged, left in [
        (b"", []),
        (b"\x00\xff" * 1000, []),
        (whole[:-20], [3, 4]),
        (json.dumps(foreign).encode() + b"\n" + whole, [3, 4, 5]),
    ]:
        caplog.clear()
        await store.put(object_key("0-0", 5), damaged)
        found, cursor = await read_events(store)
        assert _numbers(found, "0-0") == [0, 1, 2, *left, 6, 7, 8]
        assert cursor.last_seq == {"0-0": 8}
        assert (object_key("0-0", 5) in caplog.text) == (damaged != b"")


async def test_foreign_keys_are_ignored() -> None:
    """What others put below `events/` is not read."""
    store = MemoryStore()
    await _write(store, "1-0", 2)
    for key in ("events/README", "events/0-0/notes.txt", "events/1-0/000000000009.jsonl.bak", "events/1-0/a/b"):
        await store.put(key, b"")
    found, cursor = await read_events(store)
    assert cursor.last_seq == {"1-0": 1}
    assert len(found) == 2


async def test_errors_of_the_store_reach_the_reader_as_they_are() -> None:
    """A StoreError, not a group."""

    class Unreadable(MemoryStore):
        async def get(
            self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
        ) -> memoryview:
            raise StoreError(f"cannot read {key}")

    store = Unreadable()
    await _write(store, "0-0", 3, flush_every=1)
    with pytest.raises(StoreError, match="cannot read events/0-0"):
        await read_events(store)
    with pytest.raises(StoreError, match="cannot read events/0-0"):
        await anext(follow_events(store))


async def test_a_follower_is_cancelled_and_closed_at_any_point() -> None:
    """It holds nothing between two events: it may be left, and closed from another task."""
    store = MemoryStore()
    await _write(store, "0-0", 3)
    for steps in range(40):
        with anyio.CancelScope() as scope:
            following = follow_events(store, poll_s=60)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, following)
                for _ in range(steps):
                    await checkpoint()
                scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.aclose)


async def test_a_thousand_writers() -> None:
    """Are read, and then polled, in seconds."""
    store = MemoryStore()
    line = Event("step", "w", 0, 0.0, {"number": 0}).to_json()
    for number in range(1000):
        writer = f"{number}-0"
        await store.put(object_key(writer, 0), line.replace('"w"', f'"{writer}"').encode())
    with anyio.fail_after(10):
        found, cursor = await read_events(store)
        assert len(found) == 1000
        assert await read_events(store, cursor) == ([], cursor)


async def test_ten_thousand_events_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Are taken from a training thread without dropping any, in few objects."""
    store = MemoryStore()

    def train() -> None:
        for number in range(20_000):
            events.emit("step", number=number, loss=1.25, tokens_per_s=1e5)

    with caplog.at_level(logging.WARNING), anyio.fail_after(20):
        async with EventWriter(store, "0-0", flush_s=0.05) as events:
            await to_thread.run_sync(train)
        found, _ = await read_events(store)
    assert _numbers(found, "0-0") == list(range(20_000))
    assert not caplog.text


async def _store_many(store: Store, *, num_writers: int, num_events: int, per_object: int) -> None:
    for writer in (f"{rank}-0" for rank in range(num_writers)):
        lines = [Event("step", writer, seq, 1.5, {"number": seq}).to_json().encode() for seq in range(num_events)]
        for first in range(0, num_events, per_object):
            key = object_key(writer, first + per_object - 1)
            await store.put(key, b"\n".join(lines[first : first + per_object]))


async def _longest_step(work: Callable[[], Awaitable[None]]) -> float:
    """Return the most seconds of its own processor time that the event loop's thread takes between two turns."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await anyio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.sleep(0.01)
        await work()
        await anyio.sleep(0.01)  # the last step counts
        tasks.cancel_scope.cancel()
    return longest


async def test_reading_a_long_log_leaves_the_event_loop_free() -> None:
    """Of 10^5 events: read at once, or followed."""
    store = MemoryStore()
    await _store_many(store, num_writers=4, num_events=25_000, per_object=2500)

    kept = []  # freeing them takes a while, too

    async def read() -> None:
        kept.append((await read_events(store))[0])

    async def follow() -> None:
        kept.append(await _follow(store, 100_000))

    gc.disable()  # collections take what they take, in whichever thread they come due
    try:
        assert await _longest_step(read) < 0.02
        assert await _longest_step(follow) < 0.02
    finally:
        gc.enable()
    assert [len(events) for events in kept] == [100_000, 100_000]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_log_works_on_both_event_loops(backend: str, tmp_path: Path) -> None:
    """Writing, following and the file store below it."""

    async def main() -> list[JSON]:
        async with FileStore(tmp_path) as store, EventWriter(store, "0-0", flush_s=QUICK_S) as events:
            for number in range(10):
                events.emit("step", number=number)
            with anyio.move_on_after(0.001):
                await store.put("cancelled", b"x" * 10_000_000)
            await _write(store, "1-0", 1)
            found = await _follow(store, 4)
            for _ in range(3):  # looks that leave their listings early, which trio would complain of
                await read_events(store, Cursor().after(*found).after(Event("step", "1-0", 0, 0.0)))
            found += await _follow(store, 7, Cursor().after(*found))
            return _numbers(found, "0-0")

    assert anyio.run(main, backend=backend) == list(range(10))
