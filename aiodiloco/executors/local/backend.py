"""The five coroutines for processes of this machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from aiodiloco.errors import ExecutorError, HandleError
from aiodiloco.executors.local.client import SupervisorGoneError, ask, encode
from aiodiloco.executors.local.directory import EXIT, LOG, SPAWNED, prune, read_json, working_directory
from aiodiloco.executors.local.start import SupervisorHolder
from aiodiloco.executors.local.tail import LineReader
from aiodiloco.records import ReplicaHandle, ReplicaResult, ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiodiloco.executors.port import SpawnRequest

__all__ = ["LocalBackend"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_FOLLOW_S = 0.1
# Every torch optimizer imports torch._dynamo when it is made, which takes as long as torch itself: once is enough.
_TORCH = ["torch", "torch._dynamo"]


class LocalBackend:
    """Replicas as forks of a supervisor process; a `Backend`."""

    name = "local"
    supports_inter_replica_network = True
    default_timeout_s = 24 * 3600.0
    spawn_bound_s = 60.0

    def __init__(self, root: Path, *, detach: bool, grace_s: float, preload: Sequence[str] | None) -> None:
        self.cancel_bound_s = grace_s + 5.0
        self.supervisor = SupervisorHolder(detach=detach, grace_s=grace_s)
        self._root = root
        self._preload = preload
        self._has_pruned = False

    def check(self, request: SpawnRequest) -> None:
        """Refuse what local replicas cannot have."""
        if request.gpu is not None:
            raise ValueError(
                f"gpu={request.gpu!r}: local replicas share this machine's devices; leave gpu out and choose the "
                "device in the entrypoint"
            )
        if request.entrypoint is None:
            raise ValueError('entrypoint is required here: give a function or "module:function"')

    async def prepare(self, request: SpawnRequest) -> None:
        """Nothing: the first spawn starts the supervisor."""

    async def spawn(self, request: SpawnRequest) -> ReplicaHandle:
        """Fork the replica; starts the supervisor first if none lives."""
        call_id = f"{request.run_id}/{request.rank}-{request.incarnation}"
        path, line = await anyio.to_thread.run_sync(self._prepare, request, call_id)
        try:
            answer = await ask(path, line)
        except SupervisorGoneError as exc:
            raise ExecutorError(f"the supervisor of local replicas ended: {exc}") from exc
        if "error" in answer:
            raise ExecutorError(answer["error"])
        metadata = {
            "call_id": call_id,
            "spawn_ts": time.time(),
            "incarnation": request.incarnation,
            "timeout_s": request.timeout_s,
            "pid": answer["pid"],
            "directory": answer["directory"],
            "socket": path,
        }
        return ReplicaHandle(request.rank, self.name, request.run_id, metadata)

    async def wait(self, handle: ReplicaHandle) -> ReplicaResult:
        """Return how the replica ended; the supervisor answers when it has."""
        if (row := await self._read_exit(handle)) is not None:
            return row
        try:
            answer = await _ask_about(handle, "wait")
        except SupervisorGoneError:
            answer = None
        return await anyio.to_thread.run_sync(_find_end, handle, answer)

    async def cancel(self, handle: ReplicaHandle) -> None:
        """Have the supervisor send SIGTERM, and SIGKILL after the grace period."""
        try:
            await _ask_about(handle, "cancel")
        except SupervisorGoneError:  # its replicas ended with it
            return

    async def status(self, handle: ReplicaHandle) -> ReplicaStatus:
        """Return the recorded end, or `running` if the supervisor still has the replica."""
        if (row := await self._read_exit(handle)) is not None:
            return row.status
        try:
            answer = await _ask_about(handle, "status")
        except SupervisorGoneError:
            answer = None
        if answer is not None and answer["running"]:
            return ReplicaStatus.running
        return (await anyio.to_thread.run_sync(_find_end, handle, answer)).status

    async def logs(self, handle: ReplicaHandle, *, n_lines: int, follow: bool) -> AsyncIterator[str]:
        """Read the replica's `output.log`, in worker threads."""
        path = Path(_text(handle, "directory")) / LOG
        has_ended = await self._read_exit(handle) is not None
        if not has_ended:
            await anyio.to_thread.run_sync(_check_spawned, handle)
        reader = await anyio.to_thread.run_sync(lambda: LineReader(path, n_lines=n_lines, grows=follow))
        while True:
            lines = await anyio.to_thread.run_sync(reader.read)
            for line in lines:
                yield line
            if lines:
                continue
            if has_ended or not follow:
                break
            with anyio.move_on_after(_FOLLOW_S):
                await self.wait(handle)
                has_ended = True
        for line in reader.rest():
            yield line

    def _prepare(self, request: SpawnRequest, call_id: str) -> tuple[str, bytes]:
        """Everything about a spawn that could block the event loop; returns the socket and what to send."""
        if not self._has_pruned:
            self._has_pruned = True
            prune(self._root)
        return self.supervisor.socket(), encode(self._spawn_message(request, call_id))

    def _spawn_message(self, request: SpawnRequest, call_id: str) -> dict[str, Any]:
        assert request.entrypoint is not None
        cwd = working_directory()
        return {
            "op": "spawn",
            "call_id": call_id,
            "root": str(self._root),
            "run_id": request.run_id,
            "launch_id": request.launch_id,
            "rank": request.rank,
            "incarnation": request.incarnation,
            "entrypoint": request.entrypoint,
            "args": dict(request.entrypoint_args),
            "timeout_s": request.timeout_s,
            "main": _main_script(request.entrypoint),
            "env": _environment(request.n_replicas),
            "cwd": cwd,
            "sys_path": [cwd if entry == "" else entry for entry in sys.path],
            "argv": sys.argv,
            "preload": self._modules_to_preload(),
        }

    def _modules_to_preload(self) -> list[str]:
        if self._preload is not None:
            return list(self._preload)
        return _TORCH if "torch" in sys.modules else []

    async def _read_exit(self, handle: ReplicaHandle) -> ReplicaResult | None:
        return await anyio.to_thread.run_sync(_read_row, handle)


async def _ask_about(handle: ReplicaHandle, op: str) -> dict[str, Any]:
    return await ask(_text(handle, "socket"), encode({"op": op, "call_id": handle.call_id}))


def _read_row(handle: ReplicaHandle) -> ReplicaResult | None:
    fields = read_json(Path(_text(handle, "directory")) / EXIT)
    return None if fields is None else ReplicaResult.from_dict(fields)


def _find_end(handle: ReplicaHandle, answer: Mapping[str, Any] | None) -> ReplicaResult:
    """Return how the replica ended, which runs no more: what its supervisor answered, else what it had recorded.

    Args:
        handle: The replica's.
        answer: None where the supervisor is gone.
    """
    if answer is not None and "row" in answer:
        return ReplicaResult.from_dict(answer["row"])
    if (row := _read_row(handle)) is not None:
        return row
    _check_spawned(handle)
    return _lost(handle, supervisor_lives=answer is not None)


def _check_spawned(handle: ReplicaHandle) -> None:
    directory = Path(_text(handle, "directory"))
    if not (directory / SPAWNED).exists():
        raise HandleError(
            f"nothing is known of rank {handle.rank} of {handle.run_id}: {directory} is gone; runs are kept for seven "
            "days after their end"
        )


def _lost(handle: ReplicaHandle, *, supervisor_lives: bool) -> ReplicaResult:
    directory = handle.metadata["directory"]
    if supervisor_lives:
        error = f"it ended, and its record is missing in {directory}: removed or damaged since"
    else:
        error = (
            f"nothing is recorded of its end in {directory}: its supervisor process was killed, and the replica with "
            "it, or the disk was full"
        )
    preempted = not supervisor_lives
    return ReplicaResult(handle.rank, ReplicaStatus.failed, error=error, call_id=handle.call_id, preempted=preempted)


def _text(handle: ReplicaHandle, key: str) -> str:
    value = handle.metadata.get(key)
    if not isinstance(value, str) or not value:
        raise HandleError(
            f"the handle of rank {handle.rank} of {handle.run_id} has no {key}: not one of this backend's"
        )
    return value


def _environment(n_replicas: int) -> dict[str, str]:
    """This process's environment, with each replica's share of the cores unless the user said otherwise."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _num_cores() // n_replicas))
    return {**dict.fromkeys(_THREAD_VARIABLES, threads), **os.environ}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main_script(entrypoint: str) -> Mapping[str, str] | Sequence[str] | None:
    """How a replica finds the driver's script again: ("name", module) after `python -m`, else ("path", file)."""
    if not entrypoint.startswith("__main__:"):
        return None
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return ("name", spec.name) if spec is not None else ("path", str(Path(str(main.__file__)).absolute()))
