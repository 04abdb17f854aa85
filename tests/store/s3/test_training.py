"""What the store is for: rounds and whole runs over S3, the same to the bit as over any other store."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch

from aiodiloco import LocalProcessExecutor, MemoryStore, WaitAll, join_uri, open_store, raise_for_failures, read_events
from aiodiloco.testing.s3 import FaultyProxy
from aiodiloco.testing.s3.proxy import Fault, Reply
from tests import training
from tests.collective.ranks import mean_in_rank_order, on_all, open_ranks, random_tensors, reduce_all
from tests.diloco.models import TrainingReplica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiodiloco.testing.s3.proxy import Request

SHAPES = {"weight": (300, 70), "bias": (7,)}


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
async def test_the_mean_is_right_to_the_bit_with_a_client_for_each_rank(uri: str, algorithm: str) -> None:
    tensors = [random_tensors(rank, SHAPES) for rank in range(3)]
    expected = mean_in_rank_order(tensors)
    async with open_ranks(uri, 3, wire="fp32", algorithm=algorithm, chunk_bytes=20_000) as ranks:
        for round_ in range(2):
            reports = await reduce_all(ranks, tensors)
            assert all(len(report.members) == 3 for report in reports)
            if round_ == 0:
                for mine in tensors:
                    assert all(torch.equal(mine[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
async def test_the_mean_is_right_to_the_bit_on_a_bad_network(moto: str, bucket: str, algorithm: str) -> None:
    """30 % of requests answered 503, 5 % of replies cut short, 5 % lost after the request was carried out."""
    dice = random.Random(1)

    def decide(_: Request) -> Fault | Reply | None:
        number = dice.random()
        if number < 0.3:
            return Reply(503, "SlowDown")
        return Fault.TRUNCATE if number < 0.35 else Fault.LOSE_REPLY if number < 0.4 else None

    tensors = [random_tensors(rank, SHAPES) for rank in range(3)]
    expected = mean_in_rank_order(tensors)
    async with FaultyProxy(moto) as proxy:
        uri = f"s3://{bucket}/r1?endpoint_url={proxy.url}"
        async with open_ranks(uri, 3, wire="fp32", algorithm=algorithm, chunk_bytes=20_000) as ranks:
            proxy.decide = decide
            before = len(proxy.requests)
            await reduce_all(ranks, tensors)
            proxy.decide = lambda _: None
            assert len(proxy.requests) > before + 20
    for mine in tensors:
        assert all(torch.equal(mine[name], expected[name]) for name in expected)


async def test_replicas_trained_over_s3_are_those_trained_over_memory(uri: str) -> None:
    async def train(store: object) -> list[bytes]:
        async with open_ranks(store, 2) as ranks:
            replicas = [TrainingReplica(rank, rank=rank.rank, sync_every=3, wire="int8") for rank in ranks]
            await on_all(ranks, lambda rank: replicas[rank.rank].train(6))
            return [replica.bits() for replica in replicas]

    over_memory, over_s3 = await train(MemoryStore()), await train(join_uri(uri, "runs", "r1"))
    assert over_s3 == over_memory
    assert over_s3[0] == over_s3[1]


@pytest.fixture
async def executor(aws_environment: None, tmp_path: Path) -> AsyncIterator[LocalProcessExecutor]:
    """Started when the environment is set: replicas inherit their credentials from it."""
    async with LocalProcessExecutor(root=tmp_path, grace=2) as executor:
        yield executor


async def test_replicas_in_processes_of_their_own_meet_in_s3(executor: LocalProcessExecutor, uri: str) -> None:
    """Given nothing but the URI; the synchronous and the asynchronous face; and a bucket that is not there."""
    results = []
    for entrypoint in (training.train, training.train_async):
        run = join_uri(uri, "runs", entrypoint.__name__)
        handles = await executor.launch_replicas(2, entrypoint, {"world_size": 2, "uri": run})
        results += await executor.collect(handles, timeout=60, policy=WaitAll())
    raise_for_failures(results)
    assert len(results[0].result) == 15
    assert all(result.result == results[0].result for result in results)
    async with open_store(run) as store:
        events, _ = await read_events(store)
    assert {event.writer for event in events} == {"0-0", "1-0"}

    missing = {"world_size": 1, "uri": uri.replace("s3://", "s3://not-")}
    (failed,) = await executor.collect(await executor.launch_replicas(1, training.train, missing), timeout=60)
    assert "StoreAccessError" in failed.error
    assert "the bucket does not exist" in failed.error
    assert "canary-secret" not in failed.error
