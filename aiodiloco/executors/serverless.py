"""The executor contract: what applications call, whatever the replicas run on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from aiodiloco.executors.policy import FailFast, Policy

if TYPE_CHECKING:
    from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus

__all__ = ["Entrypoint", "OnTimeout", "ServerlessExecutor"]

Entrypoint: TypeAlias = Callable[..., object] | str
"""An importable function, sync or async, or its name as `"module:function"`."""

OnTimeout: TypeAlias = Literal["cancel", "leave"]


class ServerlessExecutor(Protocol):
    """Launches, watches, bounds and ends groups of replicas.

    Stateless: every method takes handles, and a handle rebuilt from JSON in another process does the same there.
    The methods of one executor may be called from several tasks, threads and event loops at once.
    """

    @property
    def backend_name(self) -> str:
        """The `backend_name` of this executor's handles, e.g. `"local"`."""
        ...

    @property
    def supports_inter_replica_network(self) -> bool:
        """Whether replicas can open connections to each other. Nothing in this library needs them to."""
        ...

    async def launch_replicas(
        self,
        n_replicas: int,
        entrypoint: Entrypoint | None = None,
        entrypoint_args: Mapping[str, JSON] | None = None,
        *,
        gpu: str | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
    ) -> list[ReplicaHandle]:
        """Start `n_replicas` replicas at once and return their handles in rank order.

        All start or none does: when one cannot be started, or this call is cancelled, those already started
        are cancelled.

        Args:
            n_replicas: At least 1.
            entrypoint: Called in each replica as `entrypoint(rank=…, **entrypoint_args)`. To check one given by its
                name before anything starts, its module is imported in this process, too; where that imports torch,
                this process has torch from then on.
            entrypoint_args: JSON values; tuples arrive as lists.
            gpu: The device each replica needs, in the backend's own words.
            timeout: Seconds a replica may run before the backend ends it. None: the backend's own default, which is
                never "forever".
            run_id: Shared name of the group; a fresh one by default.

        Raises:
            ValueError: a bad argument; nothing was started.
            EntrypointError: the entrypoint cannot be imported or called so; nothing was started.
            LaunchError: a replica could not be started; names the rank and carries the results of the others.
        """
        ...

    async def poll(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return where the replica is in its life, without waiting for it."""
        ...

    def stream_logs(self, handle: ReplicaHandle, *, n_lines: int = 200, follow: bool = False) -> AsyncIterator[str]:
        """Iterate over the last `n_lines` lines the replica wrote, without their line ends.

        With `follow`, go on with new lines until the replica has ended.
        """
        ...

    async def cancel(self, handle: ReplicaHandle) -> None:
        """End the replica and return once the backend confirmed that it has ended. Idempotent.

        Raises:
            ExecutorError: not confirmed within the backend's bound; the backend was asked and goes on ending it.
        """
        ...

    async def collect(
        self,
        handles: Sequence[ReplicaHandle],
        *,
        timeout: float | None = None,
        policy: Policy = FailFast(),  # noqa: B008 - frozen and without state
        on_timeout: OnTimeout = "cancel",
    ) -> list[ReplicaResult]:
        """Wait for the replicas and return one result per handle, in the order of `handles`.

        Failures are rows, not exceptions (`raise_for_failures` makes one of them). Cancelling this call cancels the
        replicas, then re-raises.

        Args:
            handles: From `launch_replicas`, or from `ReplicaHandle.from_json`.
            timeout: Seconds for all of them together. This call returns at most half a second later, whatever the
                backend does. None: as long as the replicas themselves may run.
            policy: What to do when a replica has ended.
            on_timeout: `"cancel"` cancels the replicas that have not ended by then; `"leave"` only looks. A row says
                `cancelled` only if the backend confirmed it, else `running`.
        """
        ...

    def as_completed(
        self, handles: Sequence[ReplicaHandle], *, timeout: float | None = None
    ) -> AsyncIterator[ReplicaResult]:
        """Iterate over the results as the replicas end.

        `timeout` counts from this call; when it has passed, the replicas still running are cancelled and their rows
        follow. Leaving the loop early leaves the replicas running; cancelling a task that waits for the next
        result cancels them, as for `collect`.
        """
        ...
