"""Decisions that need no event loop."""

from __future__ import annotations

import pytest
from modal_proto import api_pb2

from aiodiloco.testing.modal.functions import apply_options
from aiodiloco.testing.modal.scheduler import retry_delay_s

_Status = api_pb2.GenericResult


@pytest.mark.parametrize(
    ("status", "retry_count", "delay_s"),
    [
        (_Status.GENERIC_STATUS_FAILURE, 0, 0.1),
        (_Status.GENERIC_STATUS_FAILURE, 1, 0.2),
        (_Status.GENERIC_STATUS_TIMEOUT, 2, 0.3),  # 0.4, but not above the longest delay
        (_Status.GENERIC_STATUS_FAILURE, 3, None),
        (_Status.GENERIC_STATUS_SUCCESS, 0, None),
        (_Status.GENERIC_STATUS_TERMINATED, 0, None),
        (_Status.GENERIC_STATUS_INTERNAL_FAILURE, 0, None),
    ],
)
def test_failures_and_timeouts_are_tried_again_with_a_growing_delay(
    status: api_pb2.GenericResult.GenericStatus.ValueType, retry_count: int, delay_s: float | None
) -> None:
    policy = api_pb2.FunctionRetryPolicy(retries=3, initial_delay_ms=100, backoff_coefficient=2.0, max_delay_ms=300)
    assert retry_delay_s(status, retry_count, policy) == delay_s


def test_without_a_policy_nothing_is_tried_again() -> None:
    assert retry_delay_s(_Status.GENERIC_STATUS_FAILURE, 0, api_pb2.FunctionRetryPolicy()) is None


def test_options_replace_what_they_set_and_keep_the_rest() -> None:
    definition = api_pb2.Function(function_name="train", timeout_secs=300, secret_ids=["st-1"])
    definition.resources.memory_mb = 1024
    options = api_pb2.FunctionOptions(timeout_secs=60, secret_ids=["st-2"], replace_secret_ids=True)
    options.resources.gpu_config.gpu_type = "H100"
    variant = apply_options(definition, options)
    assert (variant.function_name, variant.timeout_secs, list(variant.secret_ids)) == ("train", 60, ["st-2"])
    assert (variant.resources.memory_mb, variant.resources.gpu_config.gpu_type) == (1024, "H100")
    assert definition.timeout_secs == 300
