"""`launch`: start a run and hold it, as a context."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiodiloco.errors import EntrypointError
from aiodiloco.executors.core import Executor
from aiodiloco.executors.launch import check_timeout
from aiodiloco.executors.policy import FailFast, KnownPolicy, Quorum, Respawn
from aiodiloco.lease import LeaseTerms, Vacancy
from aiodiloco.records import check_run_id, new_run_id
from aiodiloco.run.journal import latest_handles
from aiodiloco.run.record import RunRecord, read_record, write_record
from aiodiloco.run.run import Run
from aiodiloco.run.session import Session
from aiodiloco.store import join_uri, open_store, probe

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from aiodiloco.executors.policy import RunPolicy
    from aiodiloco.executors.port import SpawnRequest
    from aiodiloco.executors.serverless import Entrypoint
    from aiodiloco.records import JSON

__all__ = ["launch", "uri_of"]

_UNBOUND_TTL_S = 60.0  # of a driver whose replicas do not mind its end: another may drive on after as long
_OFFERED = ("rendezvous_uri", "world_size", "incarnation")


def uri_of(store: str | os.PathLike[str], run_id: str) -> str:
    """Return the URI of a run's own prefix."""
    return join_uri(store, "runs", check_run_id(run_id))


@contextlib.asynccontextmanager
async def launch(
    executor: Executor,
    entrypoint: Entrypoint | None,
    n_replicas: int,
    *,
    store: str | os.PathLike[str],
    timeout: float,
    policy: RunPolicy = FailFast(),  # noqa: B008 - frozen and without state
    args: Mapping[str, JSON] | None = None,
    gpu: str | None = None,
    run_id: str | None = None,
    lease: float | None = 60.0,
    max_gpu_seconds: float | None = None,
    replica_timeout: float | None = None,
) -> AsyncIterator[Run]:
    """Start a run, give it, and see to it that it has ended when the block is left.

    Leaving the block waits for the run's end. An exception inside, or a cancellation, ends the run first: replicas
    are cancelled, that is confirmed, the result is written, and then it goes on; bounded, whatever the backend does.
    While the block is open this process drives the run; should it die, the replicas end themselves, unless another
    process attaches before.

    With a `run_id` that was launched before, with the same arguments, this attaches to that run instead of starting
    one, and drives it if nobody else does. An exception in a block that only watches does not end the run.

    Args:
        executor: Where the replicas run.
        entrypoint: What they run; see `launch_replicas`. Parameters named `rendezvous_uri`, `world_size` and
            `incarnation` (how often this rank was started before) are passed to an entrypoint that has them.
        n_replicas: At least 1.
        store: Where runs are kept, as a URI; this one gets `runs/<run_id>` below it. Replicas must reach it.
        timeout: Seconds for the whole run: starting, running and collecting. Then replicas are cancelled.
        policy: What to do when replicas end: `FailFast`, `WaitAll`, `Quorum` or `Respawn`.
        args: Further keyword arguments for the entrypoint; JSON values.
        gpu: The device each replica needs, in the backend's own words.
        run_id: Name of the run; a fresh one by default.
        lease: Seconds after which replicas that joined the run end themselves when their driver is gone. None lets
            them go on without one.
        max_gpu_seconds: Budget: seconds of running, summed over all replicas and counted times the number in a gpu
            like `"H100:8"`. When it is spent, replicas are cancelled.
        replica_timeout: Seconds each replica may run, kept by the backend. None: the backend's own default.

    Raises:
        ValueError: a bad argument; nothing was started.
        EntrypointError: the entrypoint cannot be imported or called so; nothing was started.
        LaunchError: a replica could not be started; those that had were cancelled.
        RunConflictError: this run id was launched with other arguments.
        StoreError: the store cannot be used.
    """
    run_id = new_run_id() if run_id is None else run_id
    uri = uri_of(store, run_id)
    requests = await executor_of(executor).plan_replicas(
        n_replicas, entrypoint, _checked(args), gpu=gpu, timeout=replica_timeout, run_id=run_id,
        offered=dict(zip(_OFFERED, (uri, n_replicas, 0), strict=True)),
    )  # fmt: skip
    record = _make_record(
        executor, requests[0], timeout=timeout, policy=policy, lease=lease, max_gpu_seconds=max_gpu_seconds
    )
    _check_reachable(uri, record)
    async with open_store(uri) as run_store:
        await probe(run_store)
        if await read_record(run_store) is None:
            await executor.calls.backend.prepare(requests[0])
        written = await write_record(run_store, record)
        written.check_same(record)
        is_first = written.launch_id == record.launch_id
        session = Session(executor, uri, written, run_store)
        try:
            handles = []
            if is_first:
                session.begin(Vacancy(None, is_stale=True, silent_s=0.0), is_first=True)
                await session.wait_until_launched()
            else:
                handles = await latest_handles(run_store, n_replicas)
                session.begin()
            run = Run(session, handles, is_owned=True)
            yield run
            if run.is_detached:
                await session.release()
            else:
                await session.wait()
        except BaseException as exc:
            reason = f"its driver's block was left by {type(exc).__name__}"
            await executor.calls.finish(session.end(reason))
            raise
        finally:
            session.forget_store()


def executor_of(executor: object) -> Executor:
    """Return `executor`, or raise TypeError unless it is one of this library's."""
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must be a LocalProcessExecutor, ModalExecutor or the like, not {executor!r}")
    return executor


def _checked(args: Mapping[str, JSON] | None) -> Mapping[str, JSON] | None:
    given = [name for name in _OFFERED if isinstance(args, Mapping) and name in args]
    if given:
        raise EntrypointError(f"args may not hold {given[0]!r}: launch passes it to entrypoints that have it")
    return args


def _make_record(
    executor: Executor,
    request: SpawnRequest,
    *,
    timeout: float,
    policy: RunPolicy,
    lease: float | None,
    max_gpu_seconds: float | None,
) -> RunRecord:
    timeout_s = check_timeout(timeout)
    if timeout_s is None:
        raise ValueError("timeout must be a number of seconds, not None: every run ends")
    if not isinstance(policy, KnownPolicy | Respawn):
        raise TypeError(
            f"policy must be FailFast, WaitAll, Quorum or Respawn, not {policy!r}: another process must be able to go "
            "on with it; use launch_replicas and collect for one of your own"
        )
    goal = policy.then if isinstance(policy, Respawn) else policy
    if isinstance(goal, Quorum) and goal.k > request.n_replicas:
        raise ValueError(f"a quorum of {goal.k} cannot be reached by {request.n_replicas} replicas: lower k")
    return RunRecord(
        run_id=request.run_id,
        n_replicas=request.n_replicas,
        backend_name=executor.backend_name,
        entrypoint=request.entrypoint,
        entrypoint_args=request.entrypoint_args,
        gpu=request.gpu,
        replica_timeout_s=request.timeout_s,
        timeout_s=timeout_s,
        policy=policy,
        terms=LeaseTerms.of(_UNBOUND_TTL_S if lease is None else check_timeout(lease, name="lease") or 0.0),
        binds_replicas=lease is not None,
        max_gpu_seconds=check_timeout(max_gpu_seconds, name="max_gpu_seconds"),
        launch_id=request.launch_id,
    )


def _check_reachable(uri: str, record: RunRecord) -> None:
    if uri.startswith("memory:") and "rendezvous_uri" in record.entrypoint_args:
        raise ValueError(f"store {uri!r} lives in this process only, and replicas are others: use file:// or a bucket")
