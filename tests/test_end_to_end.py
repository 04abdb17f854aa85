"""Launch, train, collect: real processes on a real file system, as a user does it."""

import anyio
import pytest

from aiodiloco import (
    LocalProcessExecutor,
    ReplicaFailedError,
    WaitAll,
    join_uri,
    open_store,
    raise_for_failures,
    read_events,
)
from tests import training


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    """One supervisor for all tests: an executor belongs to no event loop, and torch is imported once."""
    executor = LocalProcessExecutor(root=tmp_path_factory.mktemp("replicas"), grace=2)
    yield executor
    anyio.run(executor.close)


@pytest.fixture
def uri(tmp_path):
    return join_uri(tmp_path / "store", "runs", "r1")


async def run(executor, entrypoint, n_replicas, **args):
    handles = await executor.launch_replicas(n_replicas, entrypoint, {"world_size": n_replicas, **args})
    return await executor.collect(handles, timeout=60, policy=WaitAll())


@pytest.mark.parametrize("entrypoint", [training.train, training.train_async, "tests.training:train"])
async def test_replicas_in_processes_of_their_own_end_with_the_same_bits(executor, uri, entrypoint):
    results = await run(executor, entrypoint, 3, uri=uri)
    raise_for_failures(results)
    assert len(results[0].result) == 15
    assert results[0].result == results[1].result == results[2].result
    async with open_store(uri) as store:
        events, _ = await read_events(store)
    assert {e.writer for e in events} == {"0-0", "1-0", "2-0"}
    assert sum(e.kind == "step" for e in events) == 36
    assert sum(e.kind == "round" for e in events) == 9


async def test_different_shapes_are_an_error_of_every_replica_naming_parameter_and_ranks(executor, uri):
    results = await run(executor, training.train_with_odd_shapes, 3, uri=uri, odd_rank=1)
    assert [r.status for r in results] == ["failed"] * 3
    for result in results:
        assert "RoundRefusedError" in result.error
        assert "parameter 'bias' is float32 (3,) on ranks 0, 2 but float32 (5,) on rank 1" in result.error
    with pytest.raises(ReplicaFailedError, match="3 of 3 replicas did not succeed") as caught:
        raise_for_failures(results)
    assert "train_with_odd_shapes" in str(caught.value)  # the replica's own traceback
    assert caught.value.results == tuple(results)


async def test_another_world_size_than_the_runs_is_the_error_of_that_replica(executor, uri):
    handles = await executor.launch_replicas(2, training.train_with_odd_world_size, {"world_size": 2, "uri": uri})
    results = await executor.collect(handles, timeout=60)
    errors = " ".join(r.error or "" for r in results)
    assert "WorldSizeError" in errors
    assert "world_size=3" in errors or "world_size=2" in errors  # whichever came second is the odd one


async def test_a_rank_taken_twice_is_the_error_of_the_second(executor, uri):
    handles = await executor.launch_replicas(2, training.train_as_rank_zero, {"world_size": 2, "uri": uri})
    results = await executor.collect(handles, timeout=60)
    assert any("RankTakenError: rank 0 of " in (r.error or "") for r in results)


async def test_a_second_run_under_a_used_prefix_is_refused(executor, uri):
    raise_for_failures(await run(executor, training.train, 1, uri=uri))
    (again,) = await run(executor, training.train, 1, uri=uri)
    assert "RankTakenError" in again.error
    assert "start a new run under a new prefix" in again.error


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda tmp_path: "s3x://bucket/prefix", "ValueError: store 's3x://bucket/prefix'"),
        (lambda tmp_path: str(_file(tmp_path)), "StoreAccessError"),
    ],
    ids=["unknown", "a file"],
)
async def test_a_store_that_cannot_be_used_is_the_error_of_the_replica(executor, tmp_path, make, error):
    (result,) = await run(executor, training.train, 1, uri=make(tmp_path))
    assert result.status == "failed"
    assert error in result.error


def _file(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a directory")
    return path
