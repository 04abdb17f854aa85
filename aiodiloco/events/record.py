"""What the event log consists of: events, the keys of the objects that hold them, and a reader's cursor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping  # noqa: TC003 - web frameworks resolve these annotations at run time

from aiodiloco.records import JSON  # noqa: TC001 - likewise
from aiodiloco.store import check_key

__all__ = ["PREFIX", "Cursor", "Event", "check_writer", "object_key", "parse_key", "writer_prefix"]

PREFIX = "events/"


@dataclasses.dataclass(frozen=True, slots=True)  # slots: half the work for the garbage collector
class Event:
    """Something that happened to one replica or to the driver.

    Attributes:
        kind: What happened, e.g. `"step"`.
        writer: Who says so: `rank-incarnation`, or `driver`. One process at a time.
        seq: 0, 1, 2, … for each writer. `(writer, seq)` names the event and orders those of one writer.
        time: Unix seconds on the writer's clock, for people; clocks of two machines differ.
        data: The rest. A float that is not finite is one of the strings `"nan"`, `"inf"`, `"-inf"`.
    """

    kind: str
    writer: str
    seq: int
    time: float
    data: Mapping[str, JSON] = dataclasses.field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        """Return the event as one line of JSON, without the newline."""
        fields = {"kind": self.kind, "writer": self.writer, "seq": self.seq, "time": self.time, "data": dict(self.data)}
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Event:
        """Return the event that `to_json` wrote. Raises ValueError when `text` is not one."""
        try:
            event = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as exc:
            raise ValueError(f"not an event: {text[:200]!r} ({exc})") from exc
        types = {"kind": str, "writer": str, "seq": int, "time": int | float, "data": dict}
        wrong = [name for name, kind in types.items() if not isinstance(getattr(event, name), kind)]
        if wrong:
            raise ValueError(f"not an event: {text[:200]!r} (wrong type of {', '.join(wrong)})")
        return event


@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far a reader has come: nothing at or before it is read again.

    Attributes:
        last_seq: Writer -> `seq` of the last event read. A writer not read yet is missing.
    """

    last_seq: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for writer, seq in self.last_seq.items():
            check_writer(writer)
            if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
                raise ValueError(f"cursor of {writer!r}: seq must be an int >= 0, not {seq!r}")

    def after(self, *events: Event) -> Cursor:
        """Return the cursor of a reader that, besides, has read `events`, each with all before it of its writer."""
        last = dict(self.last_seq)
        for event in events:
            last[event.writer] = max(event.seq, last.get(event.writer, -1))
        return Cursor(last)

    def to_json(self) -> str:
        """Return the cursor as one line of JSON."""
        return json.dumps(dict(self.last_seq), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Cursor:
        """Return the cursor that `to_json` wrote. Raises ValueError when `text` is not one."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError("not an object")  # noqa: TRY004, TRY301 - one error for all malformed text
            return cls(fields)
        except ValueError as exc:
            raise ValueError(f"not an event cursor: {text[:200]!r} ({exc}); use Cursor.to_json's text") from exc


def check_writer(writer: str) -> str:
    """Return `writer`, or raise ValueError if it is not a single key component."""
    if "/" in check_key(writer):
        raise ValueError(f"event writer {writer!r} is not valid: use one component without '/'")
    return writer


def writer_prefix(writer: str) -> str:
    """Return what the keys of all objects of `writer` start with."""
    return f"{PREFIX}{writer}/"


def object_key(writer: str, last_seq: int) -> str:
    """Return the key of the object whose last event is `last_seq`.

    Named by its *last* event, objects after `object_key(writer, seq)` are exactly those with events after `seq`: a
    cursor is one number per writer, wherever in an object a reader stopped. Digits enough for 10^4 events/s for years.
    """
    return f"{writer_prefix(writer)}{last_seq:012d}.jsonl"


def parse_key(key: str) -> tuple[str, int] | None:
    """Return the writer and last seq of an event object's key, or None for any other key."""
    writer, _, name = key.removeprefix(PREFIX).partition("/")
    digits = name.removesuffix(".jsonl")
    if not digits.isdecimal() or key != object_key(writer, int(digits)):
        return None
    return writer, int(digits)
