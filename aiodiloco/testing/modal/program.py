"""The control plane as a program of its own."""

from __future__ import annotations

import functools
import shlex
import signal
import sys
from typing import TYPE_CHECKING

import anyio

from aiodiloco.testing.modal.loopback import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskStatus

__all__ = ["main", "serve"]


async def serve(
    *,
    port: int = 0,
    max_containers: int = 100,
    preload: Sequence[str] = (),
    task_status: TaskStatus[dict[str, str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run a control plane until cancelled; `task_status` is started with the environment variables for clients.

    Args:
        port: Port to listen on, 0 for a free one.
        max_containers: How many containers may run at once.
        preload: Modules that every container has imported from the start.
        task_status: For `TaskGroup.start`.
    """
    async with LoopbackModal(port=port, max_containers=max_containers, preload=preload) as modal:
        task_status.started(modal.env)
        await anyio.sleep_forever()


def main(*, port: int = 0, max_containers: int = 100, preload: Sequence[str] = ()) -> None:
    """Run a control plane until SIGINT or SIGTERM; print `export NAME=value` lines for a shell to evaluate first."""
    anyio.run(_serve_until_signalled, port, max_containers, preload)


async def _serve_until_signalled(port: int, max_containers: int, preload: Sequence[str]) -> None:
    serving = functools.partial(serve, port=port, max_containers=max_containers, preload=preload)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as task_group:
            env: dict[str, str] = await task_group.start(serving)
            for name, value in env.items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
            sys.stdout.flush()
            await anext(signals)
            task_group.cancel_scope.cancel()
