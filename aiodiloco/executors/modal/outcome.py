"""How a Modal call ended: a pure function of what its `get` returned or raised, and of what was asked of it."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import json
import re
import traceback
from typing import TYPE_CHECKING, cast

import modal.exception
from grpclib.exceptions import StreamTerminatedError

from aiodiloco.errors import LeaseExpiredError
from aiodiloco.executors.entrypoint import exit_code_of
from aiodiloco.executors.json_values import find_non_json
from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Asked", "is_from_replica", "is_transient", "row_of_exception", "row_of_value"]

_REMEDY = "results travel as JSON: return numbers, strings, lists and dicts, and put larger things in the store"
_LINES = "__line_cache__"
_UNPICKLABLE = "Here is the remote traceback:\n"  # the client's words, for an exception that it could not unpickle
_MOST_FRAMES = 200
_RUNTIME = re.compile(r"/modal/(_runtime/|_container_entrypoint\.py|replica\.py)")  # Modal's, and this package's
_CONTAINER_PREFIX = re.compile(r"^<[^>]*>:")  # Modal marks a file of a container as "<container id>:path"
_TRANSIENT = (
    modal.exception.ConnectionError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    modal.exception.ServiceError,
    StreamTerminatedError,
)
_CANCELLATIONS = (asyncio.CancelledError, KeyboardInterrupt, modal.exception.InputCancellation)


class Asked(enum.IntEnum):
    """What this process has asked of a replica."""

    nothing = 0
    to_end = 1
    to_be_killed = 2


def is_from_replica(exc: BaseException) -> bool:
    """Return whether the replica raised `exc`; else the client or the control plane did.

    The client attaches the source lines of the container to what it unpickles, and to nothing else. A replica may
    well raise a TimeoutError, or one of Modal's own errors.
    """
    return hasattr(exc, _LINES)


def is_transient(exc: BaseException) -> bool:
    """Return whether `exc` says that the control plane could not be asked, and so nothing about the replica."""
    return isinstance(exc, _TRANSIENT) and not is_from_replica(exc)


def row_of_value(handle: ReplicaHandle, value: object) -> ReplicaResult:
    """Return the row of a replica that returned `value`: succeeded, or failed if that is not JSON."""
    if problem := find_non_json(value, "the return value"):
        return _failed(handle, f"TypeError: {problem}; {_REMEDY}", exit_code=1)
    result = cast("JSON", json.loads(json.dumps(value)))  # tuples become lists, as they do everywhere else
    return ReplicaResult(handle.rank, ReplicaStatus.succeeded, exit_code=0, result=result, call_id=handle.call_id)


def row_of_exception(handle: ReplicaHandle, exc: BaseException, *, asked: Asked) -> ReplicaResult | None:
    """Return the row of a replica whose `get` raised `exc`, or None if that says nothing about the replica.

    Args:
        handle: The replica's.
        exc: What `FunctionCall.get` raised, called without a timeout: so a builtin TimeoutError is the replica's own.
        asked: What this process asked of the replica: Modal has no outcome "cancelled".
    """
    if isinstance(exc, SystemExit):
        return _row_of_exit(handle, exc)
    if _is_how_it_ends(exc, asked):
        return ReplicaResult(handle.rank, ReplicaStatus.cancelled, error="cancelled", call_id=handle.call_id)
    if is_from_replica(exc):
        code = exit_code_of(exc)
        row = _failed(handle, _one_line(exc), exit_code=code, text=_remote_traceback(exc))
        return dataclasses.replace(row, preempted=code == LeaseExpiredError.exit_code)
    if is_transient(exc):
        return None
    if _UNPICKLABLE in str(exc):
        said, _, text = str(exc).partition(_UNPICKLABLE)
        return _failed(handle, f"{type(exc).__qualname__}: {' '.join(said.split())}"[:1000], exit_code=1, text=text)
    row = _failed(handle, _explain(handle, exc))
    return dataclasses.replace(row, preempted=isinstance(exc, modal.exception.InternalFailure))


def _is_how_it_ends(exc: BaseException, asked: Asked) -> bool:
    if isinstance(exc, modal.exception.InternalFailure):
        return asked is Asked.to_be_killed
    is_silent = type(exc) is modal.exception.RemoteError and not str(exc)
    return asked is not Asked.nothing and (is_silent or isinstance(exc, _CANCELLATIONS))


def _explain(handle: ReplicaHandle, exc: BaseException) -> str:
    if isinstance(exc, modal.exception.OutputExpiredError):
        return "nobody knows how it ended: Modal keeps results for seven days, and its own has expired"
    if isinstance(exc, modal.exception.FunctionTimeoutError):
        return f"ran longer than its own timeout of {_timeout_of(handle)} (launch_replicas(timeout=…))"
    if isinstance(exc, modal.exception.InternalFailure):
        return f"its container was lost: {_text_of(exc) or 'Modal gave no reason (out of memory? see its log)'}"
    if type(exc) is modal.exception.RemoteError and not str(exc):
        return "ended without a word: cancelled from elsewhere (another process, `modal app stop`, the dashboard)"
    if isinstance(exc, modal.exception.NotFoundError):
        return f"Modal knows of no call {handle.call_id}: {_text_of(exc)}; is this the workspace that launched it?"
    return _one_line(exc)


def _row_of_exit(handle: ReplicaHandle, exc: SystemExit) -> ReplicaResult:
    if not exc.code:
        return ReplicaResult(handle.rank, ReplicaStatus.succeeded, exit_code=0, call_id=handle.call_id)
    exit_code = exc.code & 0xFF if isinstance(exc.code, int) else 1
    return _failed(handle, _one_line(exc), exit_code=exit_code, text=_remote_traceback(exc))


def _failed(
    handle: ReplicaHandle, error: str, *, exit_code: int | None = None, text: str | None = None
) -> ReplicaResult:
    return ReplicaResult(
        handle.rank, ReplicaStatus.failed, exit_code=exit_code, error=error, call_id=handle.call_id, traceback=text
    )


def _one_line(exc: BaseException) -> str:
    return f"{type(exc).__qualname__}: {_text_of(exc)}"[:1000]


def _text_of(exc: BaseException) -> str:
    try:
        return " ".join(str(exc).split())
    except Exception:  # noqa: BLE001 - a replica's own exception class may have a broken __str__
        return "(its message could not be formatted)"


def _timeout_of(handle: ReplicaHandle) -> str:
    seconds = handle.metadata.get("timeout_s")
    return f"{seconds:g} s" if isinstance(seconds, (int, float)) else "its function"


def _remote_traceback(exc: BaseException) -> str | None:
    """Format the replica's part of the traceback, with the source lines that came along."""
    frames = list(itertools.dropwhile(_is_of_the_runtime, _remote_frames(exc)))
    if not frames:
        return None
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join([*lines, _one_line(exc), "\n"])


def _remote_frames(exc: BaseException) -> Iterator[traceback.FrameSummary]:
    lines: Mapping[tuple[str, int | None], str] = getattr(exc, _LINES, {})
    for frame in traceback.extract_tb(exc.__traceback__, limit=_MOST_FRAMES):
        if _CONTAINER_PREFIX.match(frame.filename):
            path = _CONTAINER_PREFIX.sub("", frame.filename)
            line = lines.get((path, frame.lineno), "")
            yield traceback.FrameSummary(path, frame.lineno, frame.name, lookup_line=False, line=line)


def _is_of_the_runtime(frame: traceback.FrameSummary) -> bool:
    return _RUNTIME.search(frame.filename) is not None
