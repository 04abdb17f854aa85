"""`LocalProcessExecutor`: replicas as processes of this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from aiodiloco.executors.core import Executor
from aiodiloco.executors.local.backend import LocalBackend
from aiodiloco.executors.local.directory import default_root

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["LocalProcessExecutor"]


class LocalProcessExecutor(Executor):
    """Runs replicas as processes of this machine, for development, tests and machines with several devices.

    Replicas are forked from a supervisor process, in which torch is imported once (see `preload`), so they start in
    milliseconds. Unless detached, they end with the process that launched them, however that ends. Each has a process
    group of its own, its share of the cores (unless OMP_NUM_THREADS is set), and writes its output, result and exit
    code to files, so any process of this machine that has the handle can poll, stream and collect, also after the
    driver died. `launch_replicas(timeout=None)` bounds a replica to 24 hours. A cancelled replica gets SIGTERM: an
    async entrypoint is cancelled, a sync one gets a KeyboardInterrupt, and `finally` blocks have `grace` seconds.
    Linux; on macOS replicas outlive a supervisor that was killed by hand.

    An entrypoint given as `"module:function"` is checked by importing its module in this process: where that imports
    torch, this process has torch from then on.

    Args:
        root: Where replicas leave logs and results; runs that ended more than seven days ago are removed. By default
            `aiodiloco/local` in the user's state directory (`$XDG_STATE_HOME`, `~/.local/state`).
        detach: Keep replicas running when this process ends or the executor is closed.
        grace: Seconds between asking a cancelled replica to end (SIGTERM) and killing it (SIGKILL).
        preload: Modules to import once for all replicas. By default torch, if this process has imported it. A module
            that starts threads when imported does not belong here.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        detach: bool = False,
        grace: float = 5.0,
        preload: Sequence[str] | None = None,
    ) -> None:
        if not 0 <= grace < math.inf:
            raise ValueError(f"grace must be a finite number of seconds >= 0, not {grace!r}")
        if isinstance(preload, str):
            raise ValueError(f"preload must be a list of module names, not {preload!r}")  # noqa: TRY004 - one error for bad arguments
        where = (default_root() if root is None else Path(root)).absolute()
        self._local = LocalBackend(where, detach=detach, grace_s=grace, preload=preload)
        super().__init__(self._local)

    async def close(self) -> None:
        """End this executor's replicas, unless detached, and its supervisor process.

        Idempotent; takes at most 10 s, and before that as long as `cancel` while cancellations are under way; not
        interrupted by anyio scopes. A later launch starts a new supervisor.
        """
        await super().close()
        with anyio.move_on_after(10, shield=True):
            await anyio.to_thread.run_sync(lambda: self._local.supervisor.close(within_s=8.0), abandon_on_cancel=True)
