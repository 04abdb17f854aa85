"""What ends a call, and what ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import modal
import psutil
import pytest

from tests.testing_modal.functions import app, sleep

if TYPE_CHECKING:
    from pathlib import Path

    from aiodiloco.testing.modal import LoopbackModal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def started(function: Any, path: Path, until: Any) -> Any:
    call = await function.spawn.aio(str(path))
    await until(lambda: lines(path))
    return call


async def test_a_polite_cancel_is_an_exception_in_a_sync_function(lookup: Any, path: Path, until: Any) -> None:
    call = await started(lookup("sleep"), path, until)
    await call.cancel.aio()
    with pytest.raises(modal.exception.RemoteError):
        await call.get.aio()
    assert lines(path) == ["start", "InputCancellation"]


async def test_a_polite_cancel_cancels_an_async_function(
    lookup: Any, path: Path, until: Any, loopback_modal: LoopbackModal
) -> None:
    call = await started(lookup("sleep_async"), path, until)
    await call.cancel.aio()
    with pytest.raises(modal.exception.RemoteError):
        await call.get.aio()
    assert loopback_modal.call(call.object_id).state == "terminated"


async def test_code_that_swallows_everything_survives_a_polite_cancel_only(
    lookup: Any, path: Path, until: Any, loopback_modal: LoopbackModal
) -> None:
    call = await started(lookup("ignores_cancellation"), path, until)
    await call.cancel.aio()
    with pytest.raises(TimeoutError):
        await call.get.aio(timeout=1)
    assert loopback_modal.call(call.object_id).is_alive
    await call.cancel.aio(terminate_containers=True)
    with pytest.raises(modal.exception.RemoteError):
        await call.get.aio()


async def test_a_terminating_cancel_kills_what_the_container_started(
    lookup: Any, path: Path, until: Any, loopback_modal: LoopbackModal
) -> None:
    call = await started(lookup("spawns_child"), path, until)
    child = psutil.Process(int(lines(path)[0]))
    await call.cancel.aio(terminate_containers=True)
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert not loopback_modal.call(call.object_id).is_alive


async def test_a_pending_call_is_cancelled_at_once(client: modal.Client, lookup: Any, path: Path, until: Any) -> None:
    one_at_a_time = lookup("sleep").with_options(max_containers=1)
    running = await started(one_at_a_time, path, until)
    pending = await one_at_a_time.spawn.aio(str(path))
    await pending.cancel.aio()
    with pytest.raises(modal.exception.RemoteError):
        await pending.get.aio()
    with pytest.raises(TimeoutError):
        await running.get.aio(timeout=0)
    assert lines(path) == ["start"]


async def test_leaving_an_ephemeral_app_ends_its_calls(
    loopback_modal: LoopbackModal, client: modal.Client, path: Path, until: Any
) -> None:
    async with app.run(client=client):
        call = await started(sleep, path, until)
        assert loopback_modal.call(call.object_id).is_alive
    assert loopback_modal.call(call.object_id).state == "terminated"


async def test_leaving_a_detached_app_leaves_its_calls_alone(
    loopback_modal: LoopbackModal, client: modal.Client, path: Path, until: Any
) -> None:
    async with app.run(client=client, detach=True):
        call = await started(sleep, path, until)
    assert loopback_modal.call(call.object_id).is_alive


async def test_a_detached_app_that_was_left_ends_with_its_last_call(
    loopback_modal: LoopbackModal, client: modal.Client, path: Path, until: Any
) -> None:
    async with app.run(client=client, detach=True):
        call = await started(sleep, path, until)
    await call.cancel.aio()
    with anyio.fail_after(10):  # ends with the app
        assert [entry async for entry in app.logs.stream.aio() if "no such line" in entry.message] == []
    with pytest.raises(modal.exception.RemoteError):
        await call.get.aio()


@pytest.mark.parametrize("name", ["first_waits_then_returns", "first_waits_then_returns_async"])
async def test_a_preempted_input_runs_again_unseen_by_the_caller(
    lookup: Any, path: Path, until: Any, loopback_modal: LoopbackModal, name: str
) -> None:
    call = await started(lookup(name), path, until)
    await loopback_modal.preempt(call.object_id)
    assert await call.get.aio() == "second incarnation"
    view = loopback_modal.call(call.object_id)
    assert (view.state, view.num_attempts) == ("success", 2)


async def test_preemption_is_a_keyboard_interrupt_in_user_code(
    lookup: Any, path: Path, until: Any, loopback_modal: LoopbackModal
) -> None:
    call = await started(lookup("sleep"), path, until)
    await loopback_modal.preempt(call.object_id)
    await until(lambda: lines(path) == ["start", "KeyboardInterrupt", "start"])
    assert loopback_modal.call(call.object_id).state == "running"
