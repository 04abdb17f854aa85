"""The latest events of a run, encoded once for all who watch it; older ones are dropped. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aiodiloco.fastapi.ids import id_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiodiloco.events import Cursor, Event

__all__ = ["Item", "Place", "Ring", "frame"]

_DROP_AT_ONCE = 1024  # from the front of a list, which moves the rest


class Item(NamedTuple):
    """One event, ready to be sent.

    Attributes:
        writer, seq: Name it.
        kind: What happened.
        data: It, on the wire, without its id.
        event_id: The id for whoever has read all before it, in the ring's order.
    """

    writer: str
    seq: int
    kind: str
    data: bytes
    event_id: bytes

    @classmethod
    def of(cls, event: Event, last_seq: Mapping[str, int]) -> Item:
        """Return `event` for readers who then have read up to `last_seq`."""
        data = b"data: " + event.to_json().encode() + b"\n"
        return cls(event.writer, event.seq, event.kind, data, id_of(last_seq).encode())


def frame(item: Item, event_id: bytes | None = None) -> bytes:
    """Return a whole server-sent event, under another id if one is given."""
    return item.data + b"id: " + (item.event_id if event_id is None else event_id) + b"\n\n"


class Ring:
    """Events in the order in which they were read from the store, each under a position.

    Args:
        max_items: So many are kept at most (and up to 1024 more).
        max_bytes: So many bytes of them, likewise.

    Attributes:
        start: The position of the oldest one kept.
        end: The position after the latest.
        dropped: Writer -> seq: what is not kept any more, up to and with these.
        read: Writer -> seq: how far the store was read.
    """

    def __init__(self, *, max_items: int = 100_000, max_bytes: int = 32 << 20) -> None:
        self.start = 0
        self.dropped: dict[str, int] = {}
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: list[Item] = []
        self._num_bytes = 0
        self.read: dict[str, int] = {}

    @property
    def end(self) -> int:
        """The position after the latest event."""
        return self.start + len(self._items)

    def extend(self, events: Iterable[Event]) -> None:
        """Add events, in order, and drop what is too old."""
        for event in events:
            self.read[event.writer] = max(event.seq, self.read.get(event.writer, -1))
            item = Item.of(event, self.read)
            self._items.append(item)
            self._num_bytes += _size(item)
        while len(self._items) > self._max_items or (self._num_bytes > self._max_bytes and len(self._items) > 1):
            self._drop(min(_DROP_AT_ONCE, len(self._items) - 1))

    def items(self, position: int, num: int) -> list[Item]:
        """Return up to `num` events from `position` on, which is not before `start`."""
        assert position >= self.start
        return self._items[position - self.start : position - self.start + num]

    def covers(self, seen: Mapping[str, int]) -> bool:
        """Return whether all that a reader has not seen, whose last seqs these are, is kept or still to come."""
        return all(seen.get(writer, -1) >= seq for writer, seq in self.dropped.items())

    def _drop(self, num: int) -> None:
        for item in self._items[:num]:
            self.dropped[item.writer] = max(item.seq, self.dropped.get(item.writer, -1))
            self._num_bytes -= _size(item)
        del self._items[:num]
        self.start += num


class Place:
    """How far one reader has come, who may have read in another order before, from another process even.

    Args:
        ring: What to read from.
        cursor: Where an earlier reading stopped.
        kinds: Of the events that are wanted; None for all.

    Attributes:
        position: In the ring, of what is to be looked at next.
        seen: Writer -> seq of the last event read.
    """

    def __init__(self, ring: Ring, cursor: Cursor, kinds: frozenset[str] | None = None) -> None:
        self.seen = dict(cursor.last_seq)
        self._ring = ring
        self._kinds = kinds
        self._ahead: dict[str, int] = {}
        self.rewind()

    @property
    def is_behind(self) -> bool:
        """Whether the ring has dropped what this reader was to look at next."""
        return self.position < self._ring.start

    def rewind(self) -> bool:
        """Go to the oldest event that is kept; return False, still behind, if something between was not read."""
        if not self._ring.covers(self.seen):
            self.position = -1
            return False
        self.position = self._ring.start
        self._ahead = {w: seq for w, seq in self.seen.items() if self._ring.dropped.get(w, -1) < seq}
        return True

    def note(self, event: Event) -> bytes | None:
        """Return a frame of an event read elsewhere, or None if it was read before or is not wanted."""
        if event.seq <= self.seen.get(event.writer, -1):
            return None
        self.seen[event.writer] = event.seq
        return frame(Item.of(event, self.seen)) if self._wants(event.kind) else None

    def skip(self) -> None:
        """Take as read what the ring has dropped: it cannot be read any more."""
        for writer, seq in self._ring.dropped.items():
            self.seen[writer] = max(seq, self.seen.get(writer, -1))

    def take(self, num: int) -> tuple[int, list[bytes]]:
        """Go over the next events, up to `num`; return over how many, and the frames of those not read before."""
        items = self._ring.items(self.position, num)
        self.position += len(items)
        return len(items), [one for item in items if (one := self._pass(item)) is not None]

    def _pass(self, item: Item) -> bytes | None:
        is_new = item.seq > self.seen.get(item.writer, -1)
        if is_new:
            self.seen[item.writer] = item.seq
        if self._ahead.get(item.writer, item.seq + 1) <= item.seq:
            del self._ahead[item.writer]
        if not is_new or not self._wants(item.kind):
            return None
        # The ring's ids are for those who have read nothing that comes later in it.
        return frame(item, id_of(self.seen).encode() if self._ahead else None)

    def _wants(self, kind: str) -> bool:
        return self._kinds is None or kind in self._kinds


def _size(item: Item) -> int:
    return len(item.data) + len(item.event_id) + 200
