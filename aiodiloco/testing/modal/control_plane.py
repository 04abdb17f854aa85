"""The control plane as a whole: its parts put together, on an event loop of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from aiodiloco.testing.modal.apps import AppService
from aiodiloco.testing.modal.blobs import BlobService
from aiodiloco.testing.modal.calls import CallService
from aiodiloco.testing.modal.containers import ContainerService
from aiodiloco.testing.modal.dicts import DictService
from aiodiloco.testing.modal.dispatch import Dispatcher, make_service
from aiodiloco.testing.modal.functions import FunctionService
from aiodiloco.testing.modal.listener import Listener
from aiodiloco.testing.modal.logs import LogService, LogStore
from aiodiloco.testing.modal.mounts import MountService
from aiodiloco.testing.modal.objects import ObjectService
from aiodiloco.testing.modal.processes import ContainerProcesses, running_zygote
from aiodiloco.testing.modal.records import State
from aiodiloco.testing.modal.runner import ProcessEvents, ProcessRunner, zygote_env
from aiodiloco.testing.modal.scheduler import Scheduler
from aiodiloco.testing.modal.volumes import VolumeService
from aiodiloco.testing.modal.working_copies import WorkingCopies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.testing.modal.faults import FaultPlan

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
    zygote = running_zygote(env=zygote_env(settings.env), preload=settings.preload)
    async with contextlib.AsyncExitStack() as stack:
        channel, directory = await stack.enter_async_context(zygote)
        copies = stack.enter_context(contextlib.closing(WorkingCopies(directory / "volumes")))
        task_group = await stack.enter_async_context(anyio.create_task_group())
        state, logs, blobs = State(), LogStore(), BlobService()
        mounts = MountService(directory, blobs)
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
            DictService(state),
            FunctionService(state, scheduler, copies),
            LogService(state, logs, streams_replay=settings.streams_replay),
            mounts,
            ObjectService(state),
            VolumeService(state, blobs, mounts, copies),
        ]
        listener = Listener(make_service(Dispatcher(services, faults, task_group)))
        processes = ContainerProcesses(channel, ProcessEvents(state, scheduler, logs, copies), task_group)
        with contextlib.closing(processes):
            async with _listening(listener, blobs, settings.port) as url:
                scheduler.runner = ProcessRunner(
                    processes=processes,
                    mounts=mounts,
                    copies=copies,
                    state=state,
                    logs=logs,
                    extra_env=settings.env,
                    url=url,
                )
                yield ControlPlane(state, scheduler, logs, blobs, listener, url)
                task_group.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _listening(listener: Listener, blobs: BlobService, port: int) -> AsyncIterator[str]:
    """Listen; yield the address."""
    try:
        await blobs.start()
        yield f"http://127.0.0.1:{await listener.up(port)}"
    finally:
        await listener.down()
        with anyio.move_on_after(5, shield=True):
            await blobs.stop()
