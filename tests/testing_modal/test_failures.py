"""How calls fail, as the unmodified client raises it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import modal
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from aiodiloco.testing.modal import LoopbackModal


async def failure(lookup: Any, kind: str) -> BaseException:
    call = await lookup("fail").spawn.aio(kind)
    with pytest.raises(BaseException) as caught:
        await call.get.aio()
    return caught.value


async def test_a_users_exception_keeps_type_attributes_and_traceback(lookup: Any) -> None:
    from tests.testing_modal.functions import UserError

    error = await failure(lookup, "user")
    assert isinstance(error, UserError)
    assert error.code == 42
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail", "the container's own frames are missing"


async def test_a_users_timeout_error_has_a_message(lookup: Any) -> None:
    error = await failure(lookup, "timeout")
    assert type(error) is TimeoutError
    assert error.args == ("the user's own",)


async def test_a_remote_system_exit_is_raised_in_the_caller(lookup: Any) -> None:
    error = await failure(lookup, "exit")
    assert isinstance(error, SystemExit)
    assert error.code == 3


async def test_an_exception_that_cannot_be_read_here_is_an_execution_error(lookup: Any) -> None:
    error = await failure(lookup, "unreadable")
    assert isinstance(error, modal.exception.ExecutionError)
    assert "Could not deserialize remote exception" in str(error)


async def test_a_lost_container_is_an_internal_failure(lookup: Any, loopback_modal: LoopbackModal) -> None:
    error = await failure(lookup, "crash")
    assert isinstance(error, modal.exception.InternalFailure)
    assert "exit code -9" in str(error)
    assert loopback_modal.calls()[-1].state == "internal_failure"


async def test_a_container_can_be_crashed_from_outside(
    lookup: Any, loopback_modal: LoopbackModal, tmp_path: Path, until: Any
) -> None:
    call = await lookup("sleep").spawn.aio(str(tmp_path / "log"))
    await until((tmp_path / "log").exists)
    await loopback_modal.crash(call.object_id)
    with pytest.raises(modal.exception.InternalFailure):
        await call.get.aio()


async def test_crashing_what_does_not_run_is_refused(lookup: Any, loopback_modal: LoopbackModal) -> None:
    call = await lookup("add").spawn.aio(1)
    await call.get.aio()
    with pytest.raises(ValueError, match="is success"):
        await loopback_modal.crash(call.object_id)
    with pytest.raises(KeyError, match="fc-unknown"):
        await loopback_modal.crash("fc-unknown")


async def test_the_functions_timeout_ends_each_attempt(lookup: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(modal.exception.FunctionTimeoutError) as caught:
        await lookup("hangs_at_first").remote.aio(str(path))
    assert not isinstance(caught.value, TimeoutError)
    assert path.read_text() == "start\n"


async def test_retries_follow_the_functions_policy(lookup: Any, loopback_modal: LoopbackModal, tmp_path: Path) -> None:
    call = await lookup("fails_twice").spawn.aio(str(tmp_path / "log"))
    assert await call.get.aio() == "third time"
    assert loopback_modal.call(call.object_id).num_attempts == 3


async def test_a_container_that_cannot_start_fails_its_input(
    loopback_modal: LoopbackModal, client: modal.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "import os, modal\napp = modal.App('broken')\n"
        "if os.environ.get('MODAL_IS_REMOTE'):\n    raise ImportError('no GPU driver')\n"
        "@app.function()\ndef function(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]  # written above

    async with only_here.app.run(client=client):
        with pytest.raises(ImportError, match="no GPU driver"):
            await only_here.function.remote.aio()


async def test_a_container_that_does_not_start_in_time_fails_its_input(
    loopback_modal: LoopbackModal, client: modal.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_start.py").write_text(
        "import os, time, modal\napp = modal.App('slow')\n"
        "if os.environ.get('MODAL_IS_REMOTE'):\n    time.sleep(60)\n"
        "@app.function(startup_timeout=1)\ndef function(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_start  # type: ignore[import-not-found]  # written above

    async with slow_start.app.run(client=client):
        with pytest.raises(modal.exception.InternalFailure):
            await slow_start.function.remote.aio()
