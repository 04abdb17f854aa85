"""What `ModalSpawnExecutor` makes of the user's function, and what it refuses."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import anyio
import modal
import pytest

from aiodiloco.errors import EntrypointError, ExecutorError, HandleError
from aiodiloco.executors.modal import ModalSpawnExecutor
from aiodiloco.records import ReplicaHandle
from aiodiloco.testing import entrypoints

from . import functions

_BOUND_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def on_modal(session_client):
    with functions.app.run(client=session_client):
        yield


def _launched(plane, handle):
    """What the control plane was asked to run for a replica."""
    return plane._running().state.calls[handle.call_id].function.definition


async def test_the_rank_goes_in_as_rank_and_rank_env_is_dropped(client) -> None:
    executor = ModalSpawnExecutor(functions.rank_and, client=client)
    args = {"number": 7, "rank_env": "RANK", "seed": 1}
    rows = await executor.collect(await executor.launch_replicas(2, entrypoint_args=args), timeout=_BOUND_S)
    assert [row.result for row in rows] == [{"rank": rank, "number": 7, "more": {"seed": 1}} for rank in range(2)]
    assert args["rank_env"] == "RANK", "the caller's own arguments are left as they are"


@pytest.mark.parametrize("given", [functions.rank_and, "tests.executors.modal.functions:rank_and"], ids=repr)
async def test_the_function_itself_may_be_given_as_the_entrypoint(client, given) -> None:
    executor = ModalSpawnExecutor(functions.rank_and, client=client)
    [row] = await executor.collect(await executor.launch_replicas(1, given), timeout=_BOUND_S)
    assert row.status == "succeeded"


@pytest.mark.parametrize("given", [functions.sleep, entrypoints.add, "aiodiloco.testing.entrypoints:add"], ids=repr)
async def test_another_entrypoint_is_refused_with_the_remedy(client, given) -> None:
    with pytest.raises(EntrypointError, match=r"ModalExecutor|not a function"):
        await ModalSpawnExecutor(functions.rank_and, client=client).launch_replicas(1, given)


async def test_arguments_the_function_does_not_take_are_refused_before_anything_is_called(client, plane) -> None:
    before = len(plane.calls())
    with pytest.raises(EntrypointError, match="unexpected keyword argument 'second'"):
        await ModalSpawnExecutor(functions.sleep, client=client).launch_replicas(1, entrypoint_args={"second": 1})
    assert len(plane.calls()) == before


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (entrypoints.add, r"is a function, not a modal.Function: .*add.*; decorate it with @app.function"),
        (modal.Cls.from_name("app", "Trainer"), r"is a Cls, .* give a function"),
        ("tests.executors.modal.functions:sleep", r"is a str, .* give a function decorated"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_modal_function_is_refused_with_the_remedy(function, says) -> None:
    with pytest.raises(TypeError, match=says):
        ModalSpawnExecutor(function)


def test_other_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"client must be a modal.Client or None, not 'ak-1'"):
        ModalSpawnExecutor(functions.sleep, client="ak-1")
    for grace in (-1, float("nan"), float("inf"), True, "3"):
        with pytest.raises(ValueError, match="grace must be a finite number of seconds"):
            ModalSpawnExecutor(functions.sleep, grace=grace)
    with pytest.raises(ValueError, match=r"deploy=True: .* was looked up, so it is deployed"):
        ModalSpawnExecutor(modal.Function.from_name("app", "train"), deploy=True)
    with pytest.raises(ValueError, match=r'has no name .* modal.App\("a-name"\)'):
        ModalSpawnExecutor(modal.App(include_source=False).function()(entrypoints.add), deploy=True)


async def test_the_decorator_holds_unless_gpu_or_timeout_are_given(client, plane) -> None:
    executor = ModalSpawnExecutor(functions.sleep, client=client)
    [plain] = await executor.launch_replicas(1)
    other = await executor.launch_replicas(2, gpu="H100:2", timeout=100.5)
    assert (plain.metadata["timeout_s"], _launched(plane, plain).timeout_secs) == (77.0, 77)
    assert [handle.metadata["timeout_s"] for handle in other] == [100.5, 100.5]
    bound = [_launched(plane, handle) for handle in other]
    assert [definition.timeout_secs for definition in bound] == [101, 101]
    assert [(d.resources.gpu_config.gpu_type, d.resources.gpu_config.count) for d in bound] == [("H100", 2)] * 2
    assert not _launched(plane, plain).resources.gpu_config.gpu_type
    for handle in (plain, *other):
        await executor.cancel(handle)


async def test_a_gpu_or_a_timeout_that_modal_has_not_are_refused(client) -> None:
    executor = ModalSpawnExecutor(functions.sleep, client=client)
    with pytest.raises(ValueError, match="gpu='H100:many'"):
        await executor.launch_replicas(1, gpu="H100:many")
    with pytest.raises(ValueError, match=r"timeout=86400.5: Modal ends functions after 24 hours"):
        await executor.launch_replicas(1, timeout=86400.5)


async def test_deploy_deploys_once_before_the_first_spawn_however_many_launch_at_once(client, plane) -> None:
    app = modal.App("deployed-once", include_source=False)
    executor = ModalSpawnExecutor(app.function(timeout=600)(entrypoints.add), deploy=True, client=client)
    publishings = plane.faults.latency(0.05, "AppPublish")
    rows = []

    async def run() -> None:
        rows.extend(await executor.collect(await executor.launch_replicas(2), timeout=_BOUND_S))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run)
    assert [row.status for row in rows] == ["succeeded"] * 6
    assert publishings.struck == 1
    found = modal.Function.from_name("deployed-once", "add", client=client)
    [row] = await executor.collect(await ModalSpawnExecutor(found, client=client).launch_replicas(1), timeout=_BOUND_S)
    assert row.status == "succeeded"


async def test_a_function_that_is_not_on_modal_is_refused_with_the_remedy(client) -> None:
    function = modal.App("nowhere", include_source=False).function()(entrypoints.add)
    with pytest.raises(ExecutorError, match=r"not on Modal yet; give deploy=True, or launch inside"):
        await ModalSpawnExecutor(function, client=client).launch_replicas(1)
    with pytest.raises(ExecutorError, match=r"knows no such thing .*is it deployed"):
        await ModalSpawnExecutor(modal.Function.from_name("nowhere", "add", client=client)).launch_replicas(1)


async def test_a_handle_without_a_call_id_is_refused(client) -> None:
    executor = ModalSpawnExecutor(functions.sleep, client=client)
    with pytest.raises(HandleError, match="has no call_id"):
        await executor.poll(ReplicaHandle(0, "modal", "run-1"))


async def test_handles_say_what_other_processes_need(client, plane) -> None:
    executor = ModalSpawnExecutor(functions.rank_and, client=client)
    [handle] = await executor.launch_replicas(1)
    assert {"call_id", "spawn_ts", "incarnation", "timeout_s", "function_id"} == set(handle.metadata)
    assert executor.dashboard_url(handle) == f"https://modal.com/id/{handle.call_id}"
    await executor.collect([handle], timeout=_BOUND_S)


def test_trio_is_refused_before_anything_is_asked_of_modal(session_client, plane) -> None:
    requests = plane.faults.latency(0, "*")
    executor = ModalSpawnExecutor(functions.rank_and, client=session_client)
    handle = ReplicaHandle(0, "modal", "run-1", {"call_id": "fc-1"})

    async def read_logs() -> None:
        async with contextlib.aclosing(executor.stream_logs(handle)) as lines:
            await anext(lines)

    for use in (
        lambda: executor.launch_replicas(1),
        lambda: executor.poll(handle),
        lambda: executor.cancel(handle),
        lambda: executor.collect([handle]),
        read_logs,
    ):
        with pytest.raises(RuntimeError, match="asyncio only"):
            anyio.run(use, backend="trio")
    assert requests.struck == 0


def test_importing_the_library_does_not_import_modal() -> None:
    code = "import sys, aiodiloco, aiodiloco.executors; print('modal' in sys.modules)"
    code += "; aiodiloco.ModalSpawnExecutor; print('modal' in sys.modules, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_BOUND_S, check=True)
    assert ran.stdout.split() == ["False", "True", "False"]


def test_a_missing_modal_is_named_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['modal'] = None\nimport aiodiloco\naiodiloco.ModalExecutor"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_BOUND_S, check=False)
    assert "aiodiloco.ModalExecutor needs modal: pip install 'aiodiloco[modal]'" in ran.stderr
