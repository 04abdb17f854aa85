"""How a replica ended: a pure function of its own words, its exit code, and what was asked of it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from aiodiloco.errors import LeaseExpiredError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["judge", "tell_unrecorded"]

_DRIVER_GONE = "its driver ended or closed the executor; detach=True keeps replicas"
_PREEMPTIONS = (-signal.SIGKILL, -signal.SIGTERM, LeaseExpiredError.exit_code)
_MAX_TOLD_BYTES = 8000  # what a Unix socket takes at once on every system


def judge(outcome: Mapping[str, Any] | None, exit_code: int, *, asked: str | None, timeout_s: float) -> dict[str, Any]:
    """Return `status`, `exit_code`, `error`, `result`, `traceback` and `preempted` of a replica that has ended.

    `preempted` is True for one that something outside of it ended: it may be started again and do better.

    Args:
        outcome: What the replica wrote about its end, or None if it could not.
        exit_code: Negative for a signal.
        asked: Why the supervisor ended it: `"cancel"`, `"timeout"`, `"driver"`, or None if it did not.
        timeout_s: The bound it ran under.
    """
    said = dict(outcome or {})
    row = {"exit_code": exit_code, "error": said.get("error"), "result": None, "traceback": said.get("traceback")}
    row["preempted"] = asked is None and exit_code in _PREEMPTIONS
    kind = said.get("kind")
    if kind == "returned" and exit_code == 0:
        return {**row, "status": "succeeded", "error": None, "result": said.get("result")}
    if kind == "raised":
        return {**row, "status": "failed"}
    if asked == "timeout":
        error = f"ran longer than its own timeout of {timeout_s:g} s (launch_replicas(timeout=…))"
        return {**row, "status": "failed", "error": error}
    if asked is not None:
        return {**row, "status": "cancelled", "error": _asked_end(asked, said.get("error"))}
    return {**row, "status": "failed", "error": _unasked_end(kind, exit_code)}


def tell_unrecorded(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a `judge` row as it can be told, in one small message, where no file could hold it.

    Args:
        row: As from `judge`.
        where: Where it could not be recorded, and why.
    """
    if row["status"] != "succeeded":
        row = {**row, "error": f"{row['error']}; its end could not be recorded {where}"}
    if len(json.dumps(row)) > _MAX_TOLD_BYTES:
        row = {**row, "traceback": None}
    size = len(json.dumps(row["result"]))
    if size > _MAX_TOLD_BYTES:
        error = f"returned, but its result of {size} bytes could not be recorded {where}"
        row = {**row, "status": "failed", "result": None, "error": error}
    return dict(row)


def _asked_end(asked: str, error: object) -> str:
    text = "cancelled" if asked == "cancel" else f"cancelled: {_DRIVER_GONE}"
    return text if error is None else f"{text}; it ended with {error}"


def _unasked_end(kind: object, exit_code: int) -> str:
    if kind == "returned":
        return f"returned, and then ended with exit code {exit_code}: see its log"
    if exit_code == LeaseExpiredError.exit_code:
        return "ended itself: its driver was gone, and it did not stop in time by itself (see its log)"
    if exit_code < 0:
        return f"killed by {_signal_name(-exit_code)}, which nobody asked for here (out of memory? see its log)"
    return f"ended with exit code {exit_code} and left no word of how (os._exit? a full disk? see its log)"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
