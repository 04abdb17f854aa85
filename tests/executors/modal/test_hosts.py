"""Launching and collecting works wherever async code runs: pytest, uvloop, a script, threads, a Jupyter kernel."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from jupyter_client.manager import start_new_kernel

from aiodiloco import LocalProcessExecutor
from aiodiloco.testing import entrypoints

from .host_drivers import launch_and_collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jupyter_client.blocking.client import BlockingKernelClient

_ROOT = Path(__file__).parents[3]
_DRIVERS = Path(__file__).with_name("host_drivers.py")
_BOUND_S = 60.0
_STOP_BOUND_S = 15.0  # a second on an idle machine; without a cure it is minutes, or never


@pytest.fixture(scope="module")
def local_executor(tmp_path_factory):
    executor = LocalProcessExecutor(root=tmp_path_factory.mktemp("local"), preload=["aiodiloco.testing.entrypoints"])
    yield executor
    asyncio.run(executor.close())


@pytest.fixture(params=["modal", "local"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def executor(request, kind, plane):
    """An executor for all tests, which have an event loop each."""
    return request.getfixturevalue(f"{kind}_executor")


@pytest.fixture
async def handles(executor):
    return await executor.launch_replicas(2, entrypoints.add)


async def test_pytest_a_fixture_launches_and_the_test_collects(executor, handles) -> None:
    """Each runs as a task of its own, so no scope may be open between them."""
    assert [row.status for row in await executor.collect(handles, timeout=_BOUND_S)] == ["succeeded"] * 2


def test_uvloop(executor) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(launch_and_collect(executor)) == [0, 1]


def test_a_plain_script(plane, kind, tmp_path) -> None:
    ran = subprocess.run(
        [sys.executable, str(_DRIVERS), kind],
        env={**os.environ, **plane.env, "PYTHONPATH": str(_ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=_BOUND_S,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "[0, 1] asyncio.unix_events\n"), ran.stderr


def test_the_first_run_of_the_docs_as_it_is_written(plane, tmp_path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (_ROOT / "docs" / "modal.md").read_text(), flags=re.DOTALL)
    (tmp_path / "main.py").write_text(program)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "work.py").write_text("def work(*, rank: int) -> dict:\n    return {'rank': rank}\n")
    ran = subprocess.run(
        [sys.executable, "main.py"],
        env={**os.environ, **plane.env, "PYTHONPATH": str(_ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=_BOUND_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "".join(f"{rank} succeeded {{'rank': {rank}}}\n" for rank in range(4))


def test_four_threads_with_a_loop_each_share_an_executor(executor) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda n: asyncio.run(launch_and_collect(executor, to=n)), range(0, 400, 100))
        assert list(results) == [[to, to + 1] for to in range(0, 400, 100)]


class Notebook:
    """A Jupyter kernel, and the client that runs cells in it."""

    def __init__(self, client: BlockingKernelClient, interrupt: Callable[[], None]) -> None:
        self._client = client
        self._interrupt = interrupt

    def _finish(self, cell: str, *, within_s: float = _BOUND_S) -> dict[str, Any]:
        while (reply := self._client.get_shell_msg(timeout=within_s))["parent_header"].get("msg_id") != cell:
            pass
        return reply["content"]

    def stop_when_idle(self, code: str) -> None:
        """Start a cell, press Stop when it only waits, and see that it ends by that."""
        idle = "import asyncio; asyncio.get_running_loop().call_later(0.3, lambda: print('idle', flush=True))"
        cell = self._client.execute(f"{idle}\n{code}")
        while "idle" not in self._client.get_iopub_msg(timeout=_BOUND_S)["content"].get("text", ""):
            pass
        self._interrupt()
        assert self._finish(cell, within_s=_STOP_BOUND_S)["ename"] == "CancelledError"

    def run(self, code: str, expression: str = "None") -> str:
        """Run a cell to its end and return the value of an expression after it."""
        reply = self._finish(self._client.execute(code, user_expressions={"value": expression}))
        assert reply["status"] == "ok", "\n".join(reply["traceback"])
        return reply["user_expressions"]["value"]["data"]["text/plain"]


@pytest.fixture
def notebook(plane, tmp_path) -> Iterator[Notebook]:
    environment = {**os.environ, **plane.env, "PYTHONPATH": str(_ROOT), "TMPDIR": str(tmp_path)}
    environment["IPYTHONDIR"] = str(tmp_path / "ipython")
    manager, client = start_new_kernel(kernel_name="python3", env=environment, startup_timeout=_BOUND_S)
    try:
        yield Notebook(client, manager.interrupt_kernel)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


_IMPORTS = """
from aiodiloco import LocalProcessExecutor, ModalExecutor
from aiodiloco.testing import entrypoints
executor = {"modal": ModalExecutor, "local": LocalProcessExecutor}["%s"]()
"""
_RESULTS = "[row.result['sum'] for row in rows]"
_STATUSES = "[row.status.value for row in rows]"


def test_jupyter_one_cell_launches_another_collects_and_stop_ends_the_replicas(notebook, kind) -> None:
    notebook.run(_IMPORTS % kind + "handles = await executor.launch_replicas(2, entrypoints.add)")
    assert notebook.run("rows = await executor.collect(handles, timeout=60)", _RESULTS) == "[0, 1]"

    notebook.run("handles = await executor.launch_replicas(2, entrypoints.sleep)")
    # An await in which nothing happens that would wake the loop: no result, and no answer of the control plane.
    notebook.run("from aiodiloco.executors.modal import backend; backend._LONG_POLL_S = 600")
    notebook.stop_when_idle("await executor.collect(handles)")
    assert notebook.run("rows = await executor.collect(handles, timeout=60)", _STATUSES) == "['cancelled', 'cancelled']"
    notebook.run("await executor.close()")


@pytest.mark.parametrize("kind", ["modal"])
def test_jupyter_stop_ends_a_launch_that_hangs(notebook, plane, kind) -> None:
    plane.faults.hang("AppPublish")
    notebook.run(_IMPORTS % kind)
    notebook.stop_when_idle("await executor.launch_replicas(2, entrypoints.add)")
