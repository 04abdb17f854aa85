"""Readers of the ring, wherever they begin and however far they fall behind, get each event once."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodiloco.events import Cursor, Event
from aiodiloco.fastapi.feed import Feed
from aiodiloco.fastapi.ids import cursor_of, id_of
from aiodiloco.fastapi.ring import Place, Ring

from .server import messages


class Log:
    """A source that is there already: some events, in the order in which they were read first."""

    def __init__(self, events):
        self.events = events
        self.num_followers = self.num_reads = self.num_reading = 0

    async def follow(self, emit, *, after):
        self.num_followers += 1
        emit(self.events)
        return "all told"

    async def read_some(self, after):
        """In another order than `follow`, as a store may give them."""
        self.num_reads += 1
        self.num_reading += 1
        assert self.num_reading == 1
        found = sorted((e for e in self.events if e.seq > after.last_seq.get(e.writer, -1)), key=lambda e: e.writer)
        self.num_reading -= 1
        return found[:7]


def _events(writers):
    seqs = dict.fromkeys(writers, -1)
    for writer in writers:
        seqs[writer] += 1
        yield Event("step" if seqs[writer] % 2 else "round", writer, seqs[writer], 0.0, {})


async def _read(feed, cursor, kinds=None):
    text = b"".join([chunk async for chunk in feed.stream(cursor, kinds)]).decode()
    return list(messages(text.split("\n")))


many_events = st.lists(st.sampled_from(["0-0", "1-0", "driver-1"]), min_size=1, max_size=60).map(
    lambda writers: list(_events(writers))
)


@settings(max_examples=60, deadline=None)
@given(events=many_events, kept=st.integers(1, 60), data=st.data())
async def test_a_stream_gives_what_its_cursor_lacks_once_and_ids_to_go_on_from(events, kept, data):
    feed = Feed(Log(events), Ring(max_items=kept))
    await feed.run()
    totals = {e.writer: e.seq for e in events}
    seen = {w: data.draw(st.integers(-1, last)) for w, last in totals.items()}
    cursor = Cursor({w: seq for w, seq in seen.items() if seq >= 0})
    *got, end = await _read(feed, cursor)
    assert (end.kind, end.data) == ("end", "all told")
    assert sorted(m.name for m in got) == sorted((e.writer, e.seq) for e in events if e.seq > seen[e.writer])
    for index, message in enumerate(got):
        known = {**{w: s for w, s in seen.items() if s >= 0}, **dict(m.name for m in got[: index + 1])}
        assert cursor_of(message.id).last_seq == known
    assert feed.has_told_all(cursor_of(got[-1].id) if got else cursor)


@settings(max_examples=30, deadline=None)
@given(events=many_events, kept=st.integers(1, 60))
async def test_a_stream_of_some_kinds_has_no_others(events, kept):
    feed = Feed(Log(events), Ring(max_items=kept))
    await feed.run()
    *got, _ = await _read(feed, Cursor(), frozenset(["round"]))
    assert sorted(m.name for m in got) == sorted((e.writer, e.seq) for e in events if e.kind == "round")


async def test_a_hundred_streams_take_one_reader_and_late_ones_one_more_at_a_time():
    log = Log(list(_events(["0-0"] * 50)))
    feed = Feed(log, Ring(max_items=10))
    counts = []

    async def count():
        counts.append(len(await _read(feed, Cursor())))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.run)
        for _ in range(100):
            tasks.start_soon(count)
    assert counts == [51] * 100
    assert log.num_followers == 1


def test_the_ring_keeps_within_its_bounds_and_knows_what_it_dropped():
    ring = Ring(max_items=10, max_bytes=1 << 20)
    ring.extend(_events(["0-0"] * 30))
    assert ring.end - ring.start <= 10
    assert ring.dropped == {"0-0": ring.start - 1}
    assert not ring.covers({"0-0": ring.start - 2})
    assert ring.covers({"0-0": ring.start - 1})
    small = Ring(max_bytes=1000)
    small.extend(_events(["0-0"] * 30))
    assert 1 <= small.end - small.start < 5
    place = Place(ring, Cursor())
    assert place.is_behind
    place.skip()
    assert place.rewind()
    assert not place.is_behind


def test_an_id_is_short_whatever_the_number_of_replicas():
    few, many = {"0-0": 5, "driver-1": 3}, {f"{rank}-0": 1000 + rank % 7 for rank in range(1000)}
    assert id_of(few) == Cursor(few).to_json()
    assert len(id_of(many)) < 6000  # header lines of 8 KiB are the usual bound
    for seen in (few, many):
        assert cursor_of(id_of(seen)).last_seq == seen


@pytest.mark.parametrize("bad", ["", "~", "~!", "~" + "A" * 70_000, "{", "[1]", '{"0-0": 1000000000000}', '{"a/b": 1}'])
def test_what_is_no_id_is_refused(bad):
    with pytest.raises(ValueError, match=r"id|cursor|Cursor"):
        cursor_of(bad)
