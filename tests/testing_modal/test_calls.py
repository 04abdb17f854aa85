"""Apps, functions and calls, driven by the unmodified client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modal
import pytest

from tests.testing_modal.functions import add, app

if TYPE_CHECKING:
    from aiodiloco.testing.modal import LoopbackModal


async def test_an_ephemeral_app_runs_its_functions(loopback_modal: LoopbackModal, client: modal.Client) -> None:
    async with app.run(client=client):
        assert await add.remote.aio(1, b=2) == 3


async def test_a_deployed_function_is_found_by_name(lookup: Any) -> None:
    assert await lookup("add").remote.aio("a", "b") == "ab"
    assert await lookup("add_async").remote.aio(1, 2) == 3


async def test_a_function_that_is_not_deployed_is_not_found(lookup: Any) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="no_such_function"):
        await lookup("no_such_function").spawn.aio()


async def test_a_spawned_call_is_got_more_than_once_and_from_its_id(lookup: Any, client: modal.Client) -> None:
    call = await lookup("add").spawn.aio(1, 2)
    assert await call.get.aio() == 3
    assert await call.get.aio(timeout=0) == 3
    rebuilt = modal.FunctionCall.from_id(call.object_id, client=client)
    assert await rebuilt.get.aio() == 3
    assert await rebuilt.num_inputs.aio() == 1


async def test_arguments_and_results_over_8_kib_go_through_blobs(lookup: Any, loopback_modal: LoopbackModal) -> None:
    call = await lookup("add").spawn.aio("x" * 100_000, "y" * 100_000)
    assert await call.get.aio() == "x" * 100_000 + "y" * 100_000
    assert loopback_modal.call(call.object_id).args == ("x" * 100_000, "y" * 100_000)


async def test_a_pending_call_times_out_for_the_caller_only(lookup: Any, tmp_path: Any) -> None:
    call = await lookup("sleep").spawn.aio(str(tmp_path / "log"), 0.5)
    with pytest.raises(TimeoutError) as caught:
        await call.get.aio(timeout=0)
    assert caught.value.args == ()
    assert await call.get.aio() == "slept"


async def test_an_unknown_call_is_not_found(lookup: Any, client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError):
        await modal.FunctionCall.from_id("fc-0000000000000000000000", client=client).get.aio()


async def test_an_expired_result_is_told_from_a_pending_one(lookup: Any, loopback_modal: LoopbackModal) -> None:
    call = await lookup("add").spawn.aio(1, 2)
    await call.get.aio()
    await loopback_modal.expire(call.object_id)
    with pytest.raises(modal.exception.OutputExpiredError):
        await call.get.aio(timeout=0)
    with pytest.raises(modal.exception.OutputExpiredError):
        await call.get.aio(timeout=0.1)
    assert loopback_modal.call(call.object_id).state == "expired"


async def test_calls_show_arguments_and_state(lookup: Any, loopback_modal: LoopbackModal) -> None:
    call = await lookup("add").spawn.aio(1, b=2, rank=7)
    await call.get.aio()
    view = loopback_modal.call(call.object_id)
    assert view == loopback_modal.calls()[-1]
    assert (view.function_name, view.args, view.kwargs, view.state) == ("add", (1,), {"b": 2, "rank": 7}, "success")
    assert not view.is_alive


async def test_options_make_a_variant_with_containers_of_its_own(lookup: Any) -> None:
    plain = lookup("pids")
    variant = plain.with_options(gpu="H100", timeout=100)
    assert await plain.remote.aio() == await plain.remote.aio()
    assert (await variant.remote.aio())[0] != (await plain.remote.aio())[0]
    assert await variant.remote.aio() == await plain.with_options(gpu="H100", timeout=100).remote.aio()


async def test_a_container_has_one_input_at_a_time(lookup: Any) -> None:
    one_container = lookup("span").with_options(max_containers=1)
    calls = [await one_container.spawn.aio() for _ in range(3)]
    (_, a, pid), (b, c, pid2), (d, _, pid3) = sorted([await call.get.aio() for call in calls])
    assert pid == pid2 == pid3
    assert a <= b < c <= d


async def test_secrets_reach_the_container_and_tokens_do_not(lookup: Any) -> None:
    environment = lookup("environment")
    assert await environment.remote.aio("LOOPBACK_SECRET") == "hidden"
    assert await environment.remote.aio("MODAL_TOKEN_SECRET") is None
    assert await environment.remote.aio("MODAL_IS_REMOTE") == "1"


async def test_a_redeployed_function_gets_fresh_containers(lookup: Any, client: modal.Client, deployed: str) -> None:
    before = await lookup("pids").remote.aio()
    await app.deploy.aio(name=deployed, client=client)
    after = await lookup("pids").remote.aio()
    assert before[0] != after[0]
    assert before[1] == after[1]


async def test_the_call_graph_has_the_state_of_a_call(lookup: Any) -> None:
    call = await lookup("add").spawn.aio(1, 2)
    await call.get.aio()
    (info,) = await call.get_call_graph.aio()
    assert (info.function_name, info.status.name) == ("add", "SUCCESS")


async def test_what_is_not_implemented_says_its_name(client: modal.Client) -> None:
    with pytest.raises(modal.exception.UnimplementedError, match="QueueGetOrCreate"):
        await modal.Queue.from_name("queue", create_if_missing=True, client=client).hydrate.aio()
