"""Who outlives whom: control plane, containers, clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import modal
import psutil
import pytest

from aiodiloco.testing.modal import LoopbackModal
from tests.testing_modal.functions import add, app, pids, prints, sleep

if TYPE_CHECKING:
    from collections.abc import Iterator


_ROOT = Path(__file__).parents[2]

_OWNER = """
import sys, time
import anyio
from aiodiloco.testing.modal import LoopbackModal
from tests.testing_modal.functions import app, spawns_child

async def main():
    async with LoopbackModal() as loopback:
        async with app.run(client=await loopback.client()):
            await spawns_child.spawn.aio(sys.argv[1])
            await anyio.sleep(60)

anyio.run(main)
"""

_PACKAGE_APP = """
import modal
app = modal.App("package")

@app.function()
def where():
    from package.where import HERE
    return HERE
"""

_SCRIPT = """
import modal
app = modal.App("script")

@app.function()
def echo(text):
    print(text, "from the container")
    return text

@app.local_entrypoint()
def main(text: str):
    print(echo.remote(text), "from the client")
"""

_CLIENT = """
from tests.testing_modal.functions import add, app
with app.run():
    print(add.remote(20, 22))
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def narrow() -> Iterator[LoopbackModal]:
    """A control plane for two containers at a time, of one input each."""
    with LoopbackModal(max_containers=2, idle_s=0, streams_replay=False) as loopback:
        yield loopback


def _start(processes: list[subprocess.Popen[str]], code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": str(_ROOT), **env},
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )
    processes.append(process)
    return process


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _gone(processes: list[psutil.Process]) -> bool:
    return all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in processes)


async def test_no_process_no_socket_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    before = psutil.Process().num_fds()
    async with LoopbackModal() as loopback:
        async with app.run(client=await loopback.client()):
            zygote = (await pids.remote.aio())[1]
            await sleep.spawn.aio(str(tmp_path / "log"))
            await until(lambda: len(_descendants(zygote)) == 2)  # two functions, a container each
            started = [psutil.Process(zygote), *_descendants(zygote)]
        url = loopback.url
    assert _gone(started)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert psutil.Process().num_fds() <= before + 4, "the client's own event loop keeps a few descriptors"
    with pytest.raises(OSError, match="All connection attempts failed"):
        await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2]))


async def test_nothing_outlives_an_owner_that_is_killed(
    processes: list[subprocess.Popen[str]], tmp_path: Path, until: Any
) -> None:
    files = tmp_path / "tmp"
    files.mkdir()
    owner = _start(processes, _OWNER, str(tmp_path / "log"), TMPDIR=str(files))
    await until((tmp_path / "log").exists)
    started = _descendants(owner.pid)
    assert len(started) == 3  # the process that forks, a container, and what that started
    assert list(files.iterdir()) != []
    owner.kill()
    await until(lambda: _gone(started))
    await until(lambda: list(files.iterdir()) == [])


async def test_the_clients_files_reach_containers_that_do_not_see_them(
    processes: list[subprocess.Popen[str]], loopback_modal: LoopbackModal, tmp_path: Path
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "where.py").write_text("HERE = __file__\n")
    (tmp_path / "package" / "train.py").write_text(_PACKAGE_APP)
    env = {**loopback_modal.env, "PYTHONPATH": str(tmp_path)}
    client = _start(processes, "from package.train import app, where\nwith app.run(): print(where.remote())", **env)
    out, _ = await anyio.to_thread.run_sync(client.communicate)
    assert out.endswith("/root/package/where.py\n")
    assert not out.startswith(str(tmp_path))


async def test_modals_command_line_finds_its_way_by_the_environment(
    processes: list[subprocess.Popen[str]], loopback_modal: LoopbackModal, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = "from modal.__main__ import main; main()"
    run = _start(processes, command, "run", str(tmp_path / "script.py"), "--text", "hello", **loopback_modal.env)
    out, _ = await anyio.to_thread.run_sync(run.communicate)
    assert run.returncode == 0
    assert "hello from the container\n" in out
    assert "hello from the client\n" in out
    assert loopback_modal.calls()[-1].args == ("hello",)


async def test_the_program_prints_the_environment_and_ends_at_a_signal(
    processes: list[subprocess.Popen[str]], until: Any
) -> None:
    program = _start(processes, "from aiodiloco.testing.modal import main; main()")
    assert program.stdout is not None
    lines = [await anyio.to_thread.run_sync(program.stdout.readline) for _ in range(5)]
    env = dict(line.removeprefix("export ").rstrip().split("=", 1) for line in lines)
    started = _descendants(program.pid)
    client = _start(processes, _CLIENT, **env)
    out, _ = await anyio.to_thread.run_sync(client.communicate)
    assert out == "42\n"
    program.send_signal(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(program.wait) == 0
    assert _gone(started)


async def test_an_ephemeral_app_ends_some_time_after_its_client_fell_silent(tmp_path: Path, until: Any) -> None:
    async with LoopbackModal(client_timeout_s=2) as loopback, app.run(client=await loopback.client()):
        call = await sleep.spawn.aio(str(tmp_path / "log"))
        await until(lambda: loopback.call(call.object_id).state == "terminated")


async def test_more_inputs_than_containers_wait_for_their_turn(narrow: LoopbackModal) -> None:
    async with app.run(client=await narrow.client()):
        calls = [await add.spawn.aio(number, 1) for number in range(8)]
        assert len(narrow.containers()) <= 2
        assert [await call.get.aio() for call in calls] == list(range(1, 9))


async def test_containers_without_idle_time_have_one_input_each(narrow: LoopbackModal) -> None:
    async with app.run(client=await narrow.client()):
        first, second = await pids.remote.aio(), await pids.remote.aio()
        assert first[0] != second[0]


async def test_a_function_with_min_containers_is_warm_from_the_start_and_stays_so(
    narrow: LoopbackModal, until: Any
) -> None:
    warm_app = modal.App("warm")
    warm_app.function(min_containers=1, serialized=True, name="nothing")(lambda: None)
    await until(lambda: not narrow.containers())  # those of other tests have ended
    async with warm_app.run(client=await narrow.client()):
        before = len(narrow.calls())
        await until(narrow.containers)
        (container,) = narrow.containers()
        with anyio.move_on_after(0.3):
            await until(lambda: narrow.containers() != [container])
            pytest.fail("the container did not wait")
        assert len(narrow.calls()) == before


async def test_an_idle_container_makes_room_for_another_functions() -> None:
    async with LoopbackModal(max_containers=1) as loopback, app.run(client=await loopback.client()):
        assert await add.remote.aio(1, 2) == 3
        assert await pids.remote.aio()
        assert len(loopback.containers()) <= 1


async def test_a_stream_can_be_told_to_start_with_the_first_new_line(narrow: LoopbackModal) -> None:
    async with app.run(client=await narrow.client()):
        await prints.remote.aio(3)
        assert [entry async for entry in prints.logs.stream.aio(timeout=0.2)] == []
        assert len([entry async for entry in prints.logs.tail.aio(10)]) == 3


async def test_a_module_to_preload_that_is_not_there_is_an_error_at_start(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="importable"):
        async with LoopbackModal(preload=["no_such_module"]):
            pass
    assert "no_such_module" in capfd.readouterr().err


def test_before_the_context_is_entered_there_is_no_control_plane() -> None:
    with pytest.raises(RuntimeError, match="enter"):
        LoopbackModal().calls()
    with pytest.raises(ValueError, match="max_containers=0"):
        LoopbackModal(max_containers=0)
