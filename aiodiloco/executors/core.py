"""The executor: launching, watching and ending replicas, written once over a backend's coroutines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiodiloco.errors import ExecutorError, HandleError
from aiodiloco.executors.awake import awake
from aiodiloco.executors.calls import Bell, Calls
from aiodiloco.executors.collect import collect, latest_end
from aiodiloco.executors.completed import Completed
from aiodiloco.executors.group import end_replica
from aiodiloco.executors.launch import check_timeout, launch, plan_launch
from aiodiloco.executors.policy import FailFast, Policy, Respawn
from aiodiloco.records import JSON, ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
    from types import TracebackType

    from aiodiloco.executors.port import Backend, SpawnRequest
    from aiodiloco.executors.serverless import Entrypoint, OnTimeout

__all__ = ["Executor"]

T = TypeVar("T")

_POLL_BOUND_S = 10.0
_CONFIRM_MARGIN_S = 2.0


class Executor:
    """A `ServerlessExecutor` over any `Backend`.

    Usable with or without `async with`; leaving it releases what the backend holds in this process.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._calls = Calls(backend)

    @property
    def backend_name(self) -> str:
        """The `backend_name` of this executor's handles."""
        return self._backend.name

    @property
    def supports_inter_replica_network(self) -> bool:
        """Whether replicas can open connections to each other."""
        return self._backend.supports_inter_replica_network

    @property
    def calls(self) -> Calls:
        """The way to the backend, for what is built on top of executors."""
        return self._calls

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for the cancellations under way, and release what the backend holds in this process. Idempotent.

        What was asked for in this event loop (by `cancel`, or by a `collect` whose timeout passed) is waited for until
        the backend has accepted it and, where that is this process's part, has gone on to force. Takes at most the
        backend's `cancel_bound_s` and a second; anyio scopes do not interrupt it.
        """
        await self._calls.wait_for_cancels()

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
        """Start `n_replicas` replicas and return their handles in rank order; see `ServerlessExecutor`."""
        requests = await self.plan_replicas(
            n_replicas, entrypoint, entrypoint_args, gpu=gpu, timeout=timeout, run_id=run_id
        )
        with awake():
            await self._backend.prepare(requests[0])
        return await launch(self._calls, requests)

    async def plan_replicas(
        self,
        n_replicas: int,
        entrypoint: Entrypoint | None = None,
        entrypoint_args: Mapping[str, JSON] | None = None,
        *,
        gpu: str | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
        offered: Mapping[str, JSON] | None = None,
    ) -> list[SpawnRequest]:
        """Return what `launch_replicas` would ask of the backend, having checked it. Starts nothing.

        Args:
            n_replicas, entrypoint, entrypoint_args, gpu, timeout, run_id: As for `launch_replicas`.
            offered: Further arguments, passed only to an entrypoint that has parameters of these names.
        """
        return await plan_launch(
            self._backend,
            n_replicas,
            entrypoint,
            entrypoint_args,
            gpu=gpu,
            timeout=timeout,
            run_id=run_id,
            offered=offered,
        )

    async def poll(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return where the replica is in its life; see `ServerlessExecutor`.

        Raises:
            ExecutorError: the backend did not answer within 10 s.
        """
        self._check_handle(handle)
        return await self._within(_POLL_BOUND_S, self._backend.status(handle), f"the status of rank {handle.rank}")

    def stream_logs(self, handle: ReplicaHandle, *, n_lines: int = 200, follow: bool = False) -> AsyncIterator[str]:
        """Iterate over the replica's output by lines; see `ServerlessExecutor`."""
        self._check_handle(handle)
        if isinstance(n_lines, bool) or not isinstance(n_lines, int) or n_lines < 0:
            raise ValueError(f"n_lines must be an int >= 0, not {n_lines!r}")
        return self._backend.logs(handle, n_lines=n_lines, follow=follow)

    async def cancel(self, handle: ReplicaHandle) -> None:
        """End the replica and return once that is confirmed; see `ServerlessExecutor`."""
        self._check_handle(handle)
        await end_replica(self._calls, handle, within_s=self._backend.cancel_bound_s + _CONFIRM_MARGIN_S)

    async def collect(
        self,
        handles: Sequence[ReplicaHandle],
        *,
        timeout: float | None = None,
        policy: Policy = FailFast(),  # noqa: B008 - frozen and without state
        on_timeout: OnTimeout = "cancel",
    ) -> list[ReplicaResult]:
        """Wait for the replicas and return one result per handle, in order; see `ServerlessExecutor`."""
        self._check_handles(handles)
        if on_timeout not in ("cancel", "leave"):
            raise ValueError(f'on_timeout must be "cancel" or "leave", not {on_timeout!r}')
        if isinstance(policy, Respawn):  # by mistake, as it is no Policy
            raise TypeError(
                "collect() cannot start replicas again, so it takes no Respawn: run them with aiodiloco.launch(…)"
            )
        deadline = latest_end(self._calls, handles, check_timeout(timeout))
        return await collect(self._calls, handles, deadline=deadline, policy=policy, on_timeout=on_timeout)

    def as_completed(
        self, handles: Sequence[ReplicaHandle], *, timeout: float | None = None
    ) -> AsyncIterator[ReplicaResult]:
        """Iterate over the results as the replicas end; see `ServerlessExecutor`."""
        self._check_handles(handles)
        return Completed(self._calls, handles, latest_end(self._calls, handles, check_timeout(timeout)))

    async def _within(self, seconds: float, call: Coroutine[Any, Any, T], what: str) -> T:
        bell = Bell()
        job = self._calls.start(call, on_end=bell.ring)
        try:
            await bell.wait_until(time.monotonic() + seconds)
            if job.has_ended:
                return job.value()
            raise ExecutorError(f"{what}: the {self.backend_name} backend did not answer within {seconds:g} s")
        finally:
            job.abandon()

    def _check_handle(self, handle: ReplicaHandle) -> None:
        if not isinstance(handle, ReplicaHandle):
            raise HandleError(
                f"not a replica handle: {handle!r}; use those of launch_replicas or ReplicaHandle.from_json"
            )
        if handle.backend_name != self.backend_name:
            raise HandleError(
                f"the handle of rank {handle.rank} is of the {handle.backend_name!r} backend, and this executor is "
                f"{self.backend_name!r}; use an executor of the backend that launched it"
            )

    def _check_handles(self, handles: Sequence[ReplicaHandle]) -> None:
        seen = set()
        for handle in handles:
            self._check_handle(handle)
            key = (handle.run_id, handle.rank, handle.call_id)
            if key in seen:
                raise ValueError(f"the handle of rank {handle.rank} of {handle.run_id} is given twice")
            seen.add(key)
