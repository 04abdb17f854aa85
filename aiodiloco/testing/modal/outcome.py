"""What the end of an attempt means for its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modal_proto import api_pb2

if TYPE_CHECKING:
    from aiodiloco.testing.modal.records import Container

__all__ = ["lost", "retry_delay_s"]

_Status = api_pb2.GenericResult


def retry_delay_s(
    status: api_pb2.GenericResult.GenericStatus.ValueType, retry_count: int, policy: api_pb2.FunctionRetryPolicy
) -> float | None:
    """Return after how long an input that ended with `status` is tried again; None: it has ended for good."""
    if status not in (_Status.GENERIC_STATUS_FAILURE, _Status.GENERIC_STATUS_TIMEOUT) or retry_count >= policy.retries:
        return None
    delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1) ** retry_count
    return float(min(delay_ms, policy.max_delay_ms or delay_ms)) / 1000


def lost(container: Container, code: int) -> api_pb2.GenericResult:
    """Return the result of an input whose container ended without one."""
    return api_pb2.GenericResult(
        status=_Status.GENERIC_STATUS_INTERNAL_FAILURE,
        exception=f"Container {container.id} ended with exit code {code} before there was an output",
        exitcode=max(code, 0),
    )
