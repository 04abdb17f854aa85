"""The control plane as a whole: its parts put together, on an event loop of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING

import anyio
from modal_proto import api_pb2

from aiodiloco.testing.modal.apps import AppService, layout_of
from aiodiloco.testing.modal.blobs import BlobService
from aiodiloco.testing.modal.calls import CallService
from aiodiloco.testing.modal.containers import ContainerService
from aiodiloco.testing.modal.dispatch import Dispatcher, make_service
from aiodiloco.testing.modal.functions import FunctionService
from aiodiloco.testing.modal.listener import Listener
from aiodiloco.testing.modal.logs import LogService, LogStore
from aiodiloco.testing.modal.objects import ObjectService
from aiodiloco.testing.modal.processes import ContainerProcesses, running_zygote
from aiodiloco.testing.modal.records import State
from aiodiloco.testing.modal.scheduler import Scheduler

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator

    from aiodiloco.testing.modal.faults import FaultPlan
    from aiodiloco.testing.modal.records import Container

__all__ = ["ControlPlane", "Settings", "running_control_plane"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user may choose; `LoopbackModal` says what each is."""

    port: int
    max_containers: int
    idle_s: float
    preemption_grace_s: float
    client_timeout_s: float
    preload: tuple[str, ...]
    env: dict[str, str]
    streams_replay: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ControlPlane:
    """What runs, for those who look at it from outside. Used on its own event loop only."""

    state: State
    scheduler: Scheduler
    logs: LogStore
    blobs: BlobService
    listener: Listener
    url: str


@contextlib.asynccontextmanager
async def running_control_plane(settings: Settings, faults: FaultPlan) -> AsyncIterator[ControlPlane]:
    """Run a control plane for as long as the block lasts."""
    state, logs, blobs = State(), LogStore(), BlobService()
    zygote = running_zygote(env=_zygote_env(settings), preload=settings.preload)
    async with zygote as channel, anyio.create_task_group() as task_group:
        scheduler = Scheduler(
            state,
            task_group,
            max_containers=settings.max_containers,
            idle_s=settings.idle_s,
            preemption_grace_s=settings.preemption_grace_s,
        )
        apps = AppService(state, scheduler, logs)
        task_group.start_soon(functools.partial(apps.stop_abandoned, after_s=settings.client_timeout_s))
        services = [
            apps,
            blobs,
            CallService(state, scheduler),
            ContainerService(state, scheduler),
            FunctionService(state, scheduler),
            LogService(state, logs, streams_replay=settings.streams_replay),
            ObjectService(state),
        ]
        listener = Listener(make_service(Dispatcher(services, faults, task_group)))
        processes = ContainerProcesses(channel, _ProcessEvents(state, scheduler, logs), task_group)
        try:
            await blobs.start()
            url = f"http://127.0.0.1:{await listener.up(settings.port)}"
            scheduler.runner = _ProcessRunner(processes, state, logs, settings, url)
            yield ControlPlane(state, scheduler, logs, blobs, listener, url)
        finally:
            task_group.cancel_scope.cancel()
            processes.close()
            await listener.down()
            with anyio.move_on_after(5, shield=True):
                await blobs.stop()


class _ProcessEvents:
    """Passes on what happens to container processes."""

    def __init__(self, state: State, scheduler: Scheduler, logs: LogStore) -> None:
        self._state = state
        self._scheduler = scheduler
        self._logs = logs

    def printed(self, task_id: str, *, is_stderr: bool, data: bytes) -> None:
        if (container := self._state.containers.get(task_id)) is not None:
            self._logs.add(container, data, is_stderr=is_stderr)

    def exited(self, task_id: str, code: int) -> None:
        if (container := self._state.containers.get(task_id)) is not None:
            self._logs.finish(container)
            self._scheduler.container_ended(container, code)


class _ProcessRunner:
    """Runs containers as processes of Modal's runtime."""

    def __init__(
        self, processes: ContainerProcesses, state: State, logs: LogStore, settings: Settings, url: str
    ) -> None:
        self._processes = processes
        self._state = state
        self._logs = logs
        self._settings = settings
        self._url = url

    def start(self, container: Container) -> None:
        function = container.function
        arguments = api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app.id,
            function_def=_one_input_at_a_time(function.definition),
            environment_name="main",
            app_layout=layout_of(function.app, self._state),
        )
        self._processes.start(
            container.id, arguments.SerializeToString(), env=self._env(container), path=_import_path()
        )

    def signal(self, container: Container, number: signal.Signals) -> None:
        self._processes.signal(container.id, number)

    def drain(self, container: Container) -> None:
        self._processes.drain(container.id)
        self._logs.finish(container)

    def _env(self, container: Container) -> dict[str, str]:
        env = _host_env() | self._settings.env
        for secret_id in container.function.definition.secret_ids:
            env |= self._state.secrets.get(secret_id, {})
        return env | {
            "MODAL_SERVER_URL": self._url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": container.id,
            "MODAL_IMAGE_ID": container.function.definition.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_LOOPBACK",
            "MODAL_REGION": "loopback",
            # Requests of containers do not say whose they are; this header does.
            "MODAL_OVERRIDE_HEADERS": f"x-task:{container.id}",
        }


def _one_input_at_a_time(definition: api_pb2.Function) -> api_pb2.Function:
    single = api_pb2.Function()
    single.CopyFrom(definition)
    single.max_concurrent_inputs = single.target_concurrent_inputs = 0
    return single


def _import_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - sys.path holds strings


def _host_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}


def _zygote_env(settings: Settings) -> dict[str, str]:
    return _host_env() | settings.env | {"MODAL_IS_REMOTE": "1", "MODAL_CONFIG_PATH": os.devnull}
