"""The control plane as a program of its own."""

from __future__ import annotations

import functools
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.testing.modal.loopback import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from anyio.abc import TaskStatus

__all__ = ["main", "print_exports", "serve"]


async def serve(
    *,
    port: int = 0,
    max_containers: int = 100,
    preload: Sequence[str] = (),
    latency_s: float = 0.0,
    task_status: TaskStatus[dict[str, str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run a control plane until cancelled; `task_status` is started with the environment variables for clients.

    Args:
        port: Port to listen on, 0 for a free one.
        max_containers: How many containers may run at once.
        preload: Modules that every container has imported from the start.
        latency_s: How much longer every request of a client takes.
        task_status: For `TaskGroup.start`.

    Raises:
        OSError: the port cannot be listened on.
        RuntimeError: a module of `preload` cannot be imported.
    """
    async with LoopbackModal(port=port, max_containers=max_containers, preload=preload) as modal:
        if latency_s:
            modal.faults.latency(latency_s)
        task_status.started(modal.env)
        await anyio.sleep_forever()


def print_exports(env: Mapping[str, str]) -> None:
    """Print `export NAME=value` lines for a shell to evaluate."""
    for name, value in env.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.flush()


def main(
    *,
    port: int = 0,
    max_containers: int = 100,
    preload: Sequence[str] = (),
    latency_s: float = 0.0,
    announce: Callable[[Mapping[str, str]], None] = print_exports,
) -> None:
    """Run a control plane until SIGINT or SIGTERM, in the main thread.

    `announce` is called with the environment variables for clients once it listens; for the rest see `serve`.
    """
    serving = functools.partial(serve, port=port, max_containers=max_containers, preload=preload, latency_s=latency_s)
    try:
        anyio.run(_serve_until_signalled, serving, announce)
    except BaseExceptionGroup as group:
        raise _only_error(group) from None


async def _serve_until_signalled(
    serving: Callable[..., Coroutine[Any, Any, None]], announce: Callable[[Mapping[str, str]], None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as task_group:
            announce(await task_group.start(serving))
            await anext(signals)
            task_group.cancel_scope.cancel()


def _only_error(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
