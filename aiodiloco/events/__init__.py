"""The event log of a run: append-only, on the run's store; progress bars and reports are drawn from it."""

from aiodiloco.events.reader import follow_events, read_events
from aiodiloco.events.record import Cursor, Event
from aiodiloco.events.writer import EventWriter

__all__ = ["Cursor", "Event", "EventWriter", "follow_events", "read_events"]
