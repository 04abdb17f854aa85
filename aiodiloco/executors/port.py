"""What a backend must be able to do: prepare, spawn, wait, cancel, status, logs, and a few facts about itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus

__all__ = ["Backend", "SpawnRequest"]


@dataclasses.dataclass(frozen=True)
class SpawnRequest:
    """One replica to start.

    Attributes:
        rank: 0 .. n_replicas - 1.
        n_replicas: How many replicas this launch starts.
        run_id: Shared by the replicas of this launch.
        launch_id: Fresh for every launch, so that a run id used twice is noticed.
        entrypoint: `"module:function"`, or None where the backend was given its function at construction.
        entrypoint_args: Keyword arguments besides `rank`; JSON values.
        gpu: What the caller asked for, in the backend's own words.
        timeout_s: The replica may run this long, then the backend ends it.
        incarnation: 0 for the first process of this rank.
    """

    rank: int
    n_replicas: int
    run_id: str
    launch_id: str
    entrypoint: str | None
    entrypoint_args: Mapping[str, JSON]
    gpu: str | None
    timeout_s: float
    incarnation: int = 0


class Backend(Protocol):
    """Where replicas run. Everything about groups, deadlines and policies is built on top of this, once.

    The core runs each call in a task of its own and stops waiting for it when a bound has passed, so a call may be
    slow, fail, or hang: it can neither hold a deadline nor lose a replica. Any process that holds the handle may ask.
    """

    @property
    def name(self) -> str:
        """`ReplicaHandle.backend_name` of its handles."""
        ...

    @property
    def supports_inter_replica_network(self) -> bool:
        """Whether replicas can open connections to each other."""
        ...

    @property
    def default_timeout_s(self) -> float:
        """How long a replica may run when the launch says nothing."""
        ...

    @property
    def spawn_bound_s(self) -> float:
        """A spawn that took longer than this has failed."""
        ...

    @property
    def cancel_bound_s(self) -> float:
        """A replica whose cancellation was accepted has ended after at most this long."""
        ...

    def check(self, request: SpawnRequest) -> None:
        """Raise ValueError, naming the remedy, if this backend could never run `request`. No I/O."""
        ...

    async def prepare(self, request: SpawnRequest) -> None:
        """Do what a launch needs before its first spawn and may take longer than one: building an image, deploying.

        Called once for each launch, with its first request; nothing runs yet, so it may be cancelled. Bounds itself.
        """
        ...

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        """Start the replica and return its handle; `metadata` holds all that other processes need to find it.

        Raises:
            UncertainSpawnError: the replica may have started, and cannot be found.
        """
        ...

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended, once it has.

        The error of a replica that was cancelled starts with "cancelled"; what follows is kept. Cancelling this call
        harms nothing, takes effect at once, and the call can be repeated.
        """
        ...

    async def cancel(self, handle: ReplicaHandle) -> None:
        """Ask the replica to end, and return once the request is accepted; no error if it has ended.

        The backend goes on to force by itself: the replica ends within `cancel_bound_s` even if the asker dies.
        """
        ...

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return where the replica is in its life, without waiting for it."""
        ...

    def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        """Iterate over the last `n_lines` lines of output, and with `follow` over new ones until the replica ended."""
        ...
