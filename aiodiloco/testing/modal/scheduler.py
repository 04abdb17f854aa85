"""Which container tries which input, and what becomes of an input when a try ends."""

from __future__ import annotations

import math
import signal
import time
from typing import TYPE_CHECKING, Protocol

import anyio
from modal_proto import api_pb2

from aiodiloco.testing.modal.outcome import lost, retry_delay_s
from aiodiloco.testing.modal.records import App, Attempt, Call, Container, Function, Input, State, new_id

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["Runner", "Scheduler"]

_Status = api_pb2.GenericResult
_DEFAULT_TIMEOUT_S = 300


class Runner(Protocol):
    """Starts and signals container processes."""

    def start(self, container: Container) -> None:
        """Start the container's process."""

    def signal(self, container: Container, number: signal.Signals) -> None:
        """Send it a signal, SIGKILL to everything that it started too."""

    def drain(self, container: Container) -> None:
        """Take in what it has printed until now."""


class Scheduler:
    """Decides; a `Runner` carries out."""

    def __init__(
        self, state: State, task_group: TaskGroup, *, max_containers: int, idle_s: float, preemption_grace_s: float
    ) -> None:
        self.runner: Runner
        self._state = state
        self._task_group = task_group
        self._max_containers = max_containers
        self._idle_s = idle_s
        self._preemption_grace_s = preemption_grace_s

    # Inputs in.

    def submit(self, entry: Input, *, first: bool = False) -> None:
        """Queue an input, as the next one if `first`."""
        function = entry.call.function
        (function.pending.appendleft if first else function.pending.append)(entry)
        function.changed.notify()
        self.pump(function)

    def pump(self, function: Function) -> None:
        """Start as many containers as queued inputs need, beyond those that are about to ask for one."""
        on_their_way = sum(
            not (container.retiring or container.attempt) and container.version == function.version
            for container in function.containers.values()
        )
        for _ in range(self._num_wanted(function) - on_their_way):
            if not self._has_room(function):
                return
            self._start(function)

    def _pump_all(self) -> None:
        for function in self._state.functions.values():
            if function.pending:
                self.pump(function)

    def _num_wanted(self, function: Function) -> int:
        if function.app.stopped:
            return 0
        warm = function.definition.autoscaler_settings.min_containers
        is_current = function.id in function.app.function_ids.values()
        return max(len(function.pending), (warm - len(function.containers)) if is_current else 0)

    def _has_room(self, function: Function) -> bool:
        settings = function.definition.autoscaler_settings
        limit = settings.max_containers or function.definition.concurrency_limit
        if limit and len(function.containers) >= limit:
            return False
        if len(self._state.containers) < self._max_containers:
            return True
        idle = next((c for c in self._state.containers.values() if c.idle and c.function is not function), None)
        if idle is not None:  # its exit makes room, and pumps again
            self._retire(idle)
        return False

    def _start(self, function: Function) -> None:
        container = Container(new_id("ta"), function, function.version)
        self._state.containers[container.id] = container
        function.containers[container.id] = container
        self.runner.start(container)
        self._task_group.start_soon(self._bound_start, container)

    async def _bound_start(self, container: Container) -> None:
        definition = container.function.definition
        bound_s = definition.startup_timeout_secs or definition.timeout_secs or _DEFAULT_TIMEOUT_S
        if not await container.changed.wait_until(lambda: container.has_started, within_s=bound_s):
            self.runner.signal(container, signal.SIGKILL)

    def _is_kept_warm(self, container: Container) -> bool:
        function = container.function
        return len(function.containers) <= function.definition.autoscaler_settings.min_containers

    # Attempts.

    async def next_input(self, container: Container) -> Input | None:
        """Return the input that a container shall try next; None: it shall end."""
        function = container.function
        if container.retiring:  # if it has an input still, its end decides what becomes of that
            return None
        if container.attempt is not None:  # its request was lost on the way back: give it the same again
            return container.attempt.input
        container.idle = container.has_started = True
        container.changed.notify()
        self._pump_all()  # another function may wait for its room
        try:
            await function.changed.wait_until(
                lambda: container.retiring or bool(function.pending),
                within_s=math.inf if self._is_kept_warm(container) else self._idle_s,
            )
        finally:
            container.idle = False
        if container.retiring or not function.pending:
            container.retiring = True
            return None
        entry = function.pending.popleft()
        self._begin(entry, container)
        return entry

    def _begin(self, entry: Input, container: Container) -> None:
        attempt = Attempt(entry, container)
        entry.attempt = container.attempt = attempt
        entry.num_attempts += 1
        definition = container.function.definition
        container.retiring |= self._idle_s <= 0 or definition.single_use_containers or definition.max_inputs == 1
        self._task_group.start_soon(self._bound, attempt)

    async def _bound(self, attempt: Attempt) -> None:
        timeout_s = attempt.input.call.function.definition.timeout_secs or _DEFAULT_TIMEOUT_S
        with anyio.move_on_after(timeout_s):
            await attempt.ended.wait()
        if not attempt.ended.is_set():
            self._kill(attempt.container)
            self._conclude(
                attempt,
                api_pb2.GenericResult(
                    status=_Status.GENERIC_STATUS_TIMEOUT,
                    exception=f"Task's current input {attempt.input.id} hit its timeout of {timeout_s}s",
                ),
            )

    def put_output(self, container: Container, item: api_pb2.FunctionPutOutputsItem) -> None:
        """Take what a container says about its input; nothing if the input is no longer its own."""
        attempt = container.attempt
        if attempt is None or attempt.input.id != item.input_id:
            return
        was_cancelled = item.input_id in container.to_cancel
        if container.preempted and item.result.status == _Status.GENERIC_STATUS_TERMINATED and not was_cancelled:
            return  # an async function's way of ending at the interrupt: the input runs again
        self.runner.drain(container)
        self._conclude(attempt, item.result, item.data_format)

    def _conclude(
        self,
        attempt: Attempt,
        result: api_pb2.GenericResult,
        data_format: api_pb2.DataFormat.ValueType = api_pb2.DATA_FORMAT_UNSPECIFIED,
    ) -> None:
        entry, container = attempt.input, attempt.container
        self._end(attempt)
        container.to_cancel.discard(entry.id)
        delay_s = retry_delay_s(result.status, entry.retry_count, entry.call.function.definition.retry_policy)
        if delay_s is None:
            self._finish(entry, result, data_format, task_id=container.id, started_at=attempt.started_at)
        else:
            entry.retry_count += 1
            self._task_group.start_soon(self._submit_later, entry, delay_s)

    async def _submit_later(self, entry: Input, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        if entry.output is None:  # not cancelled meanwhile
            self.submit(entry)

    def _end(self, attempt: Attempt) -> None:
        attempt.ended.set()
        attempt.input.attempt = attempt.container.attempt = None

    def _finish(
        self,
        entry: Input,
        result: api_pb2.GenericResult,
        data_format: api_pb2.DataFormat.ValueType = api_pb2.DATA_FORMAT_UNSPECIFIED,
        *,
        task_id: str = "",
        started_at: float = 0.0,
    ) -> None:
        if entry.output is None:
            entry.output = api_pb2.FunctionGetOutputsItem(
                result=result,
                idx=entry.idx,
                input_id=entry.id,
                data_format=data_format,
                task_id=task_id,
                input_started_at=started_at,
                output_created_at=time.time(),
                retry_count=entry.retry_count,
            )
            entry.call.changed.notify()

    # Ends.

    def cancel(self, call: Call, *, terminate_containers: bool, why: str = "") -> None:
        """End a call's unfinished inputs: queued ones at once, running ones when their container has ended them."""
        result = api_pb2.GenericResult(status=_Status.GENERIC_STATUS_TERMINATED, exception=why)
        for entry in [entry for entry in call.inputs if entry.output is None]:
            attempt = entry.attempt
            if attempt is None:
                if entry in call.function.pending:
                    call.function.pending.remove(entry)
                self._finish(entry, result)
            elif terminate_containers:
                self._kill(attempt.container)
                self._end(attempt)
                self._finish(entry, result, task_id=attempt.container.id, started_at=attempt.started_at)
            else:
                attempt.container.to_cancel.add(entry.id)
                attempt.container.changed.notify()

    def stop_app(self, app: App) -> None:
        """End an app, its calls and its containers."""
        app.stopped = True
        for call in self._state.calls.values():
            if call.function.app is app:
                self.cancel(call, terminate_containers=True, why="the app was stopped")
        for container in self._state.containers.values():
            if container.function.app is app:
                self._kill(container)

    def end_all_calls(self) -> None:
        """End every call that has not ended, killing the containers that have an input of it."""
        for call in self._state.calls.values():
            self.cancel(call, terminate_containers=True, why="the control plane was reset")

    def preempt(self, container: Container) -> None:
        """Interrupt a container as Modal does when it takes a machine away: its input runs again elsewhere."""
        container.preempted = container.retiring = True
        self.runner.signal(container, signal.SIGINT)
        self._task_group.start_soon(self._kill_later, container)

    def run_again(self, container: Container) -> None:
        """Take the container for lost though it goes on: its input runs again elsewhere, and its output is ignored."""
        attempt = container.attempt
        assert attempt is not None
        container.retiring = True
        self._end(attempt)
        self.submit(attempt.input, first=True)

    async def _kill_later(self, container: Container) -> None:
        await anyio.sleep(self._preemption_grace_s)
        if container.id in self._state.containers:
            self._kill(container)

    def retire_old_containers(self, function: Function) -> None:
        """Let no container of a former definition take another input."""
        for container in function.containers.values():
            if container.version != function.version:
                self._retire(container)

    def _retire(self, container: Container) -> None:
        container.retiring = True
        container.function.changed.notify()

    def _kill(self, container: Container) -> None:
        container.retiring = True
        self.runner.signal(container, signal.SIGKILL)

    def container_ended(self, container: Container, code: int) -> None:
        """Deal with what a container leaves: the input that it had, or that it could not even start for."""
        self._state.containers.pop(container.id, None)
        function = container.function
        function.containers.pop(container.id, None)
        attempt = container.attempt
        if attempt is not None and attempt.input.id in container.to_cancel:
            self._conclude(attempt, api_pb2.GenericResult(status=_Status.GENERIC_STATUS_TERMINATED))
        elif attempt is not None and container.preempted:
            self._end(attempt)
            self.submit(attempt.input, first=True)
        elif attempt is not None:
            self._conclude(attempt, container.failure or lost(container, code))
        elif not (container.has_started or container.retiring) and function.pending:
            self._finish(function.pending.popleft(), container.failure or lost(container, code), task_id=container.id)
        self._pump_all()
