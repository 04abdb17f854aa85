"""What each outcome of a Modal call is called, as a table."""

from __future__ import annotations

import asyncio

import modal.exception
import pytest
from grpclib.exceptions import StreamTerminatedError

from aiodiloco.errors import LeaseExpiredError
from aiodiloco.executors.modal.outcome import Asked, is_transient, row_of_exception, row_of_value
from aiodiloco.records import ReplicaHandle

_HANDLE = ReplicaHandle(3, "modal", "run-1", {"call_id": "fc-1", "timeout_s": 60.0})


def _of_replica(exc):
    """As the client hands on what was raised in a container: with the source lines it came from."""
    exc.__line_cache__ = {}
    return exc


class _UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


_SILENT = modal.exception.RemoteError("")
_LOST = modal.exception.InternalFailure("out of memory")

_TABLE = [
    # raised by get, what was asked, status, exit code, what the error says
    (_of_replica(ValueError("no\n such rank")), Asked.nothing, "failed", 1, "ValueError: no such rank"),
    (_of_replica(ValueError("no")), Asked.to_end, "failed", 1, "ValueError: no"),
    (_of_replica(TimeoutError()), Asked.nothing, "failed", 1, "TimeoutError: "),
    (_of_replica(TimeoutError("mine")), Asked.nothing, "failed", 1, "TimeoutError: mine"),
    (TimeoutError("mine"), Asked.nothing, "failed", None, "TimeoutError: mine"),
    (_of_replica(modal.exception.ConnectionError("mine")), Asked.nothing, "failed", 1, "ConnectionError: mine"),
    (_of_replica(modal.exception.FunctionTimeoutError("mine")), Asked.nothing, "failed", 1, "FunctionTimeoutError: m"),
    (_of_replica(_UnprintableError()), Asked.nothing, "failed", 1, "_UnprintableError: (its message could not"),
    (modal.exception.OutputExpiredError(), Asked.nothing, "failed", None, "its own has expired"),
    (modal.exception.FunctionTimeoutError("x"), Asked.nothing, "failed", None, "its own timeout of 60 s"),
    (modal.exception.FunctionTimeoutError("x"), Asked.to_end, "failed", None, "its own timeout of 60 s"),
    (modal.exception.ExecutionError("Could not deserialize"), Asked.nothing, "failed", None, "Could not deserialize"),
    (modal.exception.SerializationError("cannot pickle"), Asked.nothing, "failed", None, "SerializationError: cannot"),
    (modal.exception.DeserializationError("no mod"), Asked.nothing, "failed", None, "DeserializationError: no mod"),
    (_SILENT, Asked.nothing, "failed", None, "ended without a word: cancelled from elsewhere"),
    (_SILENT, Asked.to_end, "cancelled", None, "cancelled"),
    (_SILENT, Asked.to_be_killed, "cancelled", None, "cancelled"),
    (modal.exception.RemoteError("image"), Asked.to_end, "failed", None, "RemoteError: image"),
    (modal.exception.ImageBuildError("", "im-1"), Asked.to_end, "failed", None, "ImageBuildError: "),
    (modal.exception.InputCancellation(), Asked.to_end, "cancelled", None, "cancelled"),
    (asyncio.CancelledError(), Asked.to_end, "cancelled", None, "cancelled"),
    (_LOST, Asked.nothing, "failed", None, "its container was lost: out of memory"),
    (_LOST, Asked.to_end, "failed", None, "its container was lost: out of memory"),
    (_LOST, Asked.to_be_killed, "cancelled", None, "cancelled"),
    (
        modal.exception.InternalFailure(""),
        Asked.nothing,
        "failed",
        None,
        "lost: Modal gave no reason",
    ),
    (modal.exception.NotFoundError("gone"), Asked.nothing, "failed", None, "Modal knows of no call fc-1: gone"),
    (SystemExit(), Asked.nothing, "succeeded", 0, None),
    (SystemExit(0), Asked.nothing, "succeeded", 0, None),
    (SystemExit(3), Asked.nothing, "failed", 3, "SystemExit: 3"),
    (SystemExit(-1), Asked.nothing, "failed", 255, "SystemExit: -1"),
    (SystemExit("why"), Asked.nothing, "failed", 1, "SystemExit: why"),
]


@pytest.mark.parametrize(("exc", "asked", "status", "exit_code", "says"), _TABLE, ids=repr)
def test_every_outcome_becomes_a_row_with_rank_and_call_id(exc, asked, status, exit_code, says) -> None:
    row = row_of_exception(_HANDLE, exc, asked=asked)
    assert row is not None
    assert (row.rank, row.call_id, row.status, row.exit_code) == (3, "fc-1", status, exit_code)
    assert (row.error is None) if says is None else (says in row.error)
    assert "\n" not in (row.error or "")


@pytest.mark.parametrize(
    ("exc", "exit_code", "preempted"),
    [
        (_LOST, None, True),
        (_of_replica(LeaseExpiredError("its driver is gone")), 75, True),
        (_of_replica(ExceptionGroup("", [ValueError(), LeaseExpiredError("its driver is gone")])), 75, True),
        (_of_replica(ValueError("no")), 1, False),
        (_SILENT, None, False),
    ],
    ids=repr,
)
def test_who_was_ended_from_outside_was_preempted(exc, exit_code, preempted) -> None:
    row = row_of_exception(_HANDLE, exc, asked=Asked.nothing)
    assert row is not None
    assert (row.exit_code, row.preempted) == (exit_code, preempted)


@pytest.mark.parametrize("asked", Asked)
@pytest.mark.parametrize(
    "exc",
    [
        modal.exception.ConnectionError("Could not connect to the Modal server."),
        modal.exception.ServiceError("unavailable"),
        modal.exception.InternalError("internal"),
        modal.exception.ResourceExhaustedError("slow down"),
        StreamTerminatedError("Connection lost"),
    ],
    ids=repr,
)
def test_what_only_the_control_plane_says_is_no_end(exc, asked) -> None:
    assert row_of_exception(_HANDLE, exc, asked=asked) is None
    assert is_transient(exc)
    assert not is_transient(_of_replica(type(exc)("said by the replica")))


@pytest.mark.parametrize(
    ("value", "status", "result", "error"),
    [
        ({"loss": 0.5, "at": (1, 2)}, "succeeded", {"loss": 0.5, "at": [1, 2]}, None),
        (None, "succeeded", None, None),
        (float("nan"), "failed", None, "TypeError: the return value is nan, and JSON has finite numbers only"),
        ([b"x"], "failed", None, "TypeError: the return value[0] is a bytes; results travel as JSON"),
    ],
)
def test_a_value_is_the_result_if_it_is_json(value, status, result, error) -> None:
    row = row_of_value(_HANDLE, value)
    assert (row.status, row.result, row.call_id) == (status, result, "fc-1")
    assert row.error is None if error is None else row.error.startswith(error)
