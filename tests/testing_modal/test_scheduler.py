"""Decisions that need no process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from modal_proto import api_pb2

from aiodiloco.testing.modal.functions import apply_options
from aiodiloco.testing.modal.outcome import retry_delay_s
from aiodiloco.testing.modal.records import App, Call, Container, Function, Input, State
from aiodiloco.testing.modal.scheduler import Scheduler

if TYPE_CHECKING:
    import signal

_Status = api_pb2.GenericResult


class Recorder:
    """Starts no process; notes what it is asked for."""

    def __init__(self) -> None:
        self.started: list[Container] = []
        self.signals: list[signal.Signals] = []

    def start(self, container: Container) -> None:
        self.started.append(container)

    def signal(self, container: Container, number: signal.Signals) -> None:
        self.signals.append(number)

    def drain(self, container: Container) -> None: ...


def make_input() -> Input:
    app = App("ap-1", "app", api_pb2.APP_STATE_DEPLOYED)
    metadata = api_pb2.FunctionHandleMetadata()
    function = Function("fu-1", app, api_pb2.Function(), api_pb2.FunctionData(), metadata)
    call = Call("fc-1", function, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC)
    call.inputs.append(Input("in-1", 0, call, api_pb2.FunctionInput()))
    return call.inputs[0]


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


@pytest.mark.parametrize("order", ["cancelled first", "preempted first"])
async def test_an_input_that_was_cancelled_does_not_run_again_when_its_container_is_preempted(order: str) -> None:
    entry, recorder = make_input(), Recorder()
    async with anyio.create_task_group() as task_group:
        scheduler = Scheduler(State(), task_group, max_containers=2, idle_s=1, preemption_grace_s=1)
        scheduler.runner = recorder
        scheduler.submit(entry)
        (container,) = recorder.started
        assert await scheduler.next_input(container) is entry
        steps = [lambda: scheduler.cancel(entry.call, terminate_containers=False), lambda: scheduler.preempt(container)]
        for step in steps if order == "cancelled first" else reversed(steps):
            step()
        scheduler.container_ended(container, 130)
        task_group.cancel_scope.cancel()
    assert entry.output is not None
    assert entry.output.result.status == _Status.GENERIC_STATUS_TERMINATED
    assert recorder.started == [container]


async def test_a_container_that_lost_its_input_cannot_give_an_output_for_it() -> None:
    entry, recorder = make_input(), Recorder()
    async with anyio.create_task_group() as task_group:
        scheduler = Scheduler(State(), task_group, max_containers=2, idle_s=1, preemption_grace_s=1)
        scheduler.runner = recorder
        scheduler.submit(entry)
        (first,) = recorder.started
        await scheduler.next_input(first)
        scheduler.preempt(first)
        scheduler.container_ended(first, 130)
        second = recorder.started[1]
        await scheduler.next_input(second)
        result = api_pb2.GenericResult(status=_Status.GENERIC_STATUS_SUCCESS)
        scheduler.put_output(first, api_pb2.FunctionPutOutputsItem(input_id="in-1", result=result))
        assert entry.output is None
        scheduler.put_output(second, api_pb2.FunctionPutOutputsItem(input_id="in-1", result=result))
        assert entry.output is not None
        task_group.cancel_scope.cancel()
    assert entry.num_attempts == 2
