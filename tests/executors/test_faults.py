"""What the core guarantees whatever the backend does."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from aiodiloco.errors import ExecutorError, LaunchError
from aiodiloco.executors import Executor, WaitAll, collect
from aiodiloco.records import ReplicaStatus
from aiodiloco.testing import entrypoints
from aiodiloco.testing.cancellation import cancel_at_every_step

from .scripted import ScriptedBackend, hang, hang_deaf

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodiloco.records import ReplicaHandle

_BOUND_S = 10.0


async def _launch(backend: ScriptedBackend, n_replicas: int = 3) -> tuple[Executor, list[ReplicaHandle]]:
    executor = Executor(backend)
    return executor, await executor.launch_replicas(n_replicas, entrypoints.sleep)


def _for_rank(rank: int, hook: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    async def only(at: int) -> None:
        if at == rank:
            await hook(at)

    return only


async def _fail(rank: int) -> None:
    raise ConnectionError(f"no line to {rank}")


async def _exit(rank: int) -> None:
    raise SystemExit(rank)


async def test_spawns_run_concurrently_but_not_all_at_once() -> None:
    backend = ScriptedBackend()

    async def slow(rank: int) -> None:
        await anyio.sleep(0.05)

    backend.before_spawn = slow
    start = time.monotonic()
    _, handles = await _launch(backend, 64)
    assert [handle.rank for handle in handles] == list(range(64))
    assert 16 <= backend.most_in_flight <= 32
    assert time.monotonic() - start < 1.0


async def test_a_launch_is_prepared_once_before_its_first_spawn_however_long_that_takes() -> None:
    backend = ScriptedBackend(spawn_bound_s=0.1)
    prepared: list[int] = []

    async def prepare(n_replicas: int) -> None:
        await anyio.sleep(0.3)
        assert not backend.replicas
        prepared.append(n_replicas)

    backend.before_launch = prepare
    await _launch(backend, 3)
    assert prepared == [3]
    assert len(backend.replicas) == 3


async def test_a_launch_that_cannot_be_prepared_starts_nothing() -> None:
    backend = ScriptedBackend()
    backend.before_launch = _fail
    with pytest.raises(ConnectionError):
        await _launch(backend)
    backend.before_launch = hang
    with anyio.move_on_after(0.05) as scope:
        await _launch(backend)
    assert scope.cancelled_caught
    assert not backend.replicas


@pytest.mark.parametrize("fault", [_fail, _exit])
async def test_a_failed_spawn_cancels_those_that_started_and_names_the_rank(
    fault: Callable[[int], Awaitable[None]],
) -> None:
    backend = ScriptedBackend()
    backend.before_spawn = _for_rank(2, fault)
    with pytest.raises(LaunchError, match="rank 2 could not be started: ") as caught:
        await _launch(backend, 40)
    assert 2 not in backend.replicas
    assert {replica.status for replica in backend.replicas.values()} == {"cancelled"}
    assert [row.rank for row in caught.value.results] == sorted(backend.replicas)
    assert {row.status for row in caught.value.results} == {"cancelled"}
    assert len(backend.replicas) < 40, "no more are started after a failure"


async def test_a_spawn_that_hangs_fails_the_launch_within_its_bound() -> None:
    backend = ScriptedBackend(spawn_bound_s=0.3)
    backend.before_spawn = _for_rank(1, hang)
    with anyio.fail_after(_BOUND_S), pytest.raises(LaunchError, match=r"rank 1 .*: no answer within 0.3 s"):
        await _launch(backend)
    assert {replica.status for replica in backend.replicas.values()} == {"cancelled"}


async def test_a_spawn_that_answers_after_its_bound_ends_its_replica_itself() -> None:
    backend = ScriptedBackend(spawn_bound_s=0.2)

    async def late(rank: int) -> None:
        await anyio.sleep(0.5)

    backend.after_spawn = _for_rank(1, late)
    start = time.monotonic()
    with pytest.raises(LaunchError, match=r"rank 1 .*: no answer within 0.2 s") as caught:
        await _launch(backend)
    assert time.monotonic() - start < 0.45
    assert [row.status for row in caught.value.results] == ["cancelled", "pending", "cancelled"]
    assert backend.replicas[1].status == "running"
    with anyio.fail_after(_BOUND_S):
        await backend.replicas[1].ended.wait()
    assert backend.replicas[1].status == "cancelled"


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_a_launch_that_is_failing_forgets_no_replica_either(how: Literal["task", "scope"]) -> None:
    backend = ScriptedBackend()

    async def slow(rank: int) -> None:
        await anyio.sleep(0.01)

    backend.before_spawn = _for_rank(1, _fail)
    backend.after_spawn = backend.before_cancel = slow

    async def launch() -> None:
        with pytest.raises(LaunchError):
            await Executor(backend).launch_replicas(3, entrypoints.sleep)

    async def check(_: None) -> None:
        with anyio.fail_after(_BOUND_S):
            for replica in backend.replicas.values():
                await replica.ended.wait()
        backend.replicas.clear()

    assert await cancel_at_every_step(launch, check, how=how) >= 7


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelling_launch_forgets_no_replica_whose_id_was_under_way(how: Literal["task", "scope"]) -> None:
    backend = ScriptedBackend()

    async def slow(rank: int) -> None:
        await anyio.sleep(0.01)

    backend.before_spawn = backend.after_spawn = slow

    async def launch() -> list[ReplicaHandle]:
        return await Executor(backend).launch_replicas(3, entrypoints.sleep)

    async def check(handles: list[ReplicaHandle] | None) -> None:
        if handles is None:
            assert {replica.status for replica in backend.replicas.values()} <= {"cancelled"}
        backend.replicas.clear()

    assert await cancel_at_every_step(launch, check, how=how) >= 7


@pytest.mark.parametrize("hook", ["before_wait", "before_cancel"])
@pytest.mark.parametrize("fault", [hang, hang_deaf])
async def test_a_backend_that_hangs_does_not_hold_the_deadline_and_the_rows_do_not_lie(
    hook: str, fault: Callable[[int], Awaitable[None]]
) -> None:
    backend = ScriptedBackend()
    executor, handles = await _launch(backend)
    setattr(backend, hook, _for_rank(1, fault))
    start = time.monotonic()
    rows = await executor.collect(handles, timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 0.8
    assert [row.status for row in rows] == ["cancelled", "running", "cancelled"]
    assert rows[1].error == (
        "still running: the timeout of 0.3 s passed; its cancellation was asked for but not confirmed (call id call-1)"
    )


async def test_a_refused_cancellation_is_told_in_the_row() -> None:
    backend = ScriptedBackend()
    executor, handles = await _launch(backend)
    backend.before_cancel = _for_rank(1, _fail)
    rows = await executor.collect(handles, timeout=0.2)
    assert rows[1].status == "running"
    assert rows[1].error is not None
    assert rows[1].error.endswith("(call id call-1): ConnectionError: no line to 1")


@pytest.mark.parametrize("fault", [_fail, _exit])
async def test_a_replica_out_of_sight_has_failed_and_is_cancelled_with_its_siblings(
    fault: Callable[[int], Awaitable[None]],
) -> None:
    backend = ScriptedBackend()
    executor, handles = await _launch(backend)
    backend.before_wait = _for_rank(1, fault)
    rows = await executor.collect(handles, timeout=_BOUND_S)
    assert [row.status for row in rows] == ["cancelled", "failed", "cancelled"]
    assert rows[1].error is not None
    assert "lost sight of it" in rows[1].error
    assert {replica.cancels for replica in backend.replicas.values()} == {1}


async def test_siblings_that_do_not_heed_their_cancellation_do_not_hold_fail_fast_forever() -> None:
    backend = ScriptedBackend(cancel_bound_s=0.3)
    executor, handles = await _launch(backend)
    backend.before_cancel = _for_rank(1, hang)
    backend.replicas[0].end(ReplicaStatus.failed)
    with anyio.fail_after(_BOUND_S):
        rows = await executor.collect(handles)
    assert [row.status for row in rows] == ["failed", "running", "cancelled"]
    assert rows[1].error is not None
    assert "has not ended though" in rows[1].error


async def test_collect_without_a_timeout_ends_with_the_replicas_own_bound() -> None:
    """Even if the backend forgets to enforce it: 0.2 s, the backend's bound for cancelling, and a minute's margin."""
    backend = ScriptedBackend()
    executor, _ = await _launch(backend)
    loop = asyncio.get_running_loop()
    handles = [backend.handle(rank, timeout_s=0.2) for rank in range(3)]
    waiting = loop.create_task(executor.collect(handles, policy=WaitAll()))
    await anyio.sleep(0.1)
    bounds = [handle.when() - loop.time() for handle in loop._scheduled]  # type: ignore[attr-defined]
    assert any(60.0 < bound < 61.5 for bound in bounds)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("fault", [hang, hang_deaf])
async def test_a_cancelled_collect_is_held_no_longer_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[int], Awaitable[None]]
) -> None:
    assert collect._CANCELLED_BOUND_S <= 5
    monkeypatch.setattr(collect, "_CANCELLED_BOUND_S", 0.3)
    backend = ScriptedBackend(cancel_bound_s=60.0)
    executor, handles = await _launch(backend)
    backend.before_cancel = _for_rank(1, fault)
    start = time.monotonic()
    with anyio.move_on_after(0.1) as scope:
        await executor.collect(handles)
    assert scope.cancelled_caught
    assert time.monotonic() - start < 0.8
    assert [backend.replicas[rank].status for rank in (0, 2)] == ["cancelled", "cancelled"]


async def test_poll_of_a_backend_that_hangs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodiloco.executors.core._POLL_BOUND_S", 0.2)
    backend = ScriptedBackend()
    executor, handles = await _launch(backend)
    backend.before_wait = hang
    with pytest.raises(ExecutorError, match=r"status of rank 0: .* did not answer within 0.2 s"):
        await executor.poll(handles[0])


async def test_an_unconfirmed_cancel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodiloco.executors.core._CONFIRM_MARGIN_S", 0.1)
    backend = ScriptedBackend(cancel_bound_s=0.2)
    executor, handles = await _launch(backend)
    backend.before_cancel = hang
    with pytest.raises(ExecutorError, match=r"rank 0 is still running: 0.3 s after cancel\(\) was called"):
        await executor.cancel(handles[0])
    backend.before_cancel = _fail
    with pytest.raises(ExecutorError, match="no line to 0"):
        await executor.cancel(handles[0])


async def test_as_completed_of_a_backend_that_hangs_ends_at_its_deadline() -> None:
    backend = ScriptedBackend()
    executor, handles = await _launch(backend)
    backend.before_cancel = _for_rank(1, hang_deaf)
    start = time.monotonic()
    rows = [row async for row in executor.as_completed(handles, timeout=0.3)]
    assert 0.3 <= time.monotonic() - start < 0.8
    assert sorted((row.rank, row.status.value) for row in rows) == [
        (0, "cancelled"),
        (1, "running"),
        (2, "cancelled"),
    ]


def test_another_event_loop_than_asyncio_is_refused_clearly() -> None:
    """Without one there is none to run in; trio looks the same from here."""
    backend = ScriptedBackend()
    launching = Executor(backend).launch_replicas(1, entrypoints.sleep)
    with pytest.raises(RuntimeError, match="asyncio"):
        launching.send(None)
