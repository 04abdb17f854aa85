"""Log capture: what a replica logs becomes events, next to its losses and rounds."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodiloco.events import EventWriter

__all__ = ["capture_logs"]

_OWN_LOGGER = "aiodiloco.events"  # says that events cannot be written: as an event it would only make that worse


class _EventHandler(logging.Handler):
    def __init__(self, events: EventWriter) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_OWN_LOGGER):
            return
        try:
            self._events.emit("log", level=record.levelname, logger=record.name, message=self.format(record))
        except Exception:  # noqa: BLE001 - logging's own rule: a handler never breaks the program
            self.handleError(record)


@contextlib.contextmanager
def capture_logs(events: EventWriter) -> Iterator[None]:
    """Also send what passes the root logger to the event log as `log` events: level, logger, message with traceback."""
    root, handler = logging.getLogger(), _EventHandler(events)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
