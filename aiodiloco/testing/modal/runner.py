"""Containers as processes: what each is started with, and what becomes of what it says."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from aiodiloco.testing.modal.apps import layout_of

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping

    from aiodiloco.testing.modal.logs import LogStore
    from aiodiloco.testing.modal.mounts import MountService
    from aiodiloco.testing.modal.processes import ContainerProcesses
    from aiodiloco.testing.modal.records import Container, State
    from aiodiloco.testing.modal.scheduler import Scheduler
    from aiodiloco.testing.modal.working_copies import WorkingCopies

__all__ = ["ProcessEvents", "ProcessRunner", "zygote_env"]


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessEvents:
    """Passes on what happens to container processes."""

    state: State
    scheduler: Scheduler
    logs: LogStore
    copies: WorkingCopies

    def printed(self, task_id: str, *, is_stderr: bool, data: bytes) -> None:
        """Log it."""
        if (container := self.state.containers.get(task_id)) is not None:
            self.logs.add(container, data, is_stderr=is_stderr)

    def exited(self, task_id: str, code: int) -> None:
        """Tell the scheduler."""
        if (container := self.state.containers.get(task_id)) is not None:
            self.logs.finish(container)
            self.copies.detach(task_id)
            self.scheduler.container_ended(container, code)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ProcessRunner:
    """Runs containers as processes of Modal's runtime."""

    processes: ContainerProcesses
    mounts: MountService
    copies: WorkingCopies
    state: State
    logs: LogStore
    extra_env: Mapping[str, str]
    url: str

    def start(self, container: Container) -> None:
        """Start the container's process."""
        function = container.function
        arguments = api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app.id,
            function_def=_one_input_at_a_time(function.definition),
            environment_name="main",
            app_layout=layout_of(function.app, self.state),
        )
        path = [*self.mounts.import_path(function.definition.mount_ids), *_host_import_path()]
        self.processes.start(
            container.id,
            arguments.SerializeToString(),
            env=self._env(container),
            path=path,
            open_at=self.copies.attach(container, self.state.volumes),
        )

    def signal(self, container: Container, number: signal.Signals) -> None:
        """Send it a signal, SIGKILL to everything that it started too."""
        self.processes.signal(container.id, number)

    def drain(self, container: Container) -> None:
        """Log what it has printed until now."""
        self.processes.drain(container.id)
        self.logs.finish(container)

    def _env(self, container: Container) -> dict[str, str]:
        env = _host_env() | dict(self.extra_env)
        for secret_id in container.function.definition.secret_ids:
            env |= self.state.secrets.get(secret_id, {})
        return env | {
            "MODAL_SERVER_URL": self.url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": container.id,
            "MODAL_IMAGE_ID": container.function.definition.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_LOOPBACK",
            "MODAL_REGION": "loopback",
            # Requests of containers do not say whose they are; this header does.
            "MODAL_OVERRIDE_HEADERS": f"x-task:{container.id}",
        }


def zygote_env(extra_env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the process that forks containers: the runtime reads some of it when imported."""
    return _host_env() | dict(extra_env) | {"MODAL_IS_REMOTE": "1", "MODAL_CONFIG_PATH": os.devnull}


def _one_input_at_a_time(definition: api_pb2.Function) -> api_pb2.Function:
    single = api_pb2.Function()
    single.CopyFrom(definition)
    single.max_concurrent_inputs = single.target_concurrent_inputs = 0
    return single


def _host_import_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - sys.path holds strings


def _host_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
