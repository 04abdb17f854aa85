"""A wall clock that is wrong, in one process; what durations are measured by stays right."""

from __future__ import annotations

import datetime
import time
from typing import Any

__all__ = ["set_wall_clock"]

_datetime = datetime.datetime
_right = {name: getattr(time, name) for name in ("time", "time_ns", "gmtime", "localtime", "ctime")}


def set_wall_clock(off_s: float) -> None:
    """Let `time` and `datetime` tell a time of day that is so many seconds off, from now on."""

    class Wrong(_datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return _datetime.now(tz) + datetime.timedelta(seconds=off_s)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    def shifted(name: str) -> Any:
        return lambda seconds=None: _right[name](_right["time"]() + off_s if seconds is None else seconds)

    time.time = lambda: _right["time"]() + off_s
    time.time_ns = lambda: _right["time_ns"]() + round(off_s * 1e9)
    time.gmtime, time.localtime, time.ctime = shifted("gmtime"), shifted("localtime"), shifted("ctime")
    datetime.datetime = Wrong  # type: ignore[misc]
