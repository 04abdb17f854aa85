"""The dead man's switch in real processes: whose driver is gone ends itself, whatever it is doing."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import aiodiloco
from aiodiloco.errors import LeaseExpiredError
from aiodiloco.executors import LocalProcessExecutor, WaitAll
from aiodiloco.lease import LeaseDocument, LeaseState, LeaseTerms, lease_key
from aiodiloco.store import Store, join_uri, open_store

from . import leased

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(90)

_TERMS = LeaseTerms.of(2.4)
_SLACK_S = 6.0  # for a machine on which everything else runs, too


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProcessExecutor]:
    executor = LocalProcessExecutor(
        root=tmp_path_factory.mktemp("local"), preload=["torch", "torch._dynamo", "aiodiloco.replica"]
    )
    yield executor
    anyio.run(executor.close)


class Run:
    """A run whose driver is the test."""

    def __init__(self, directory: Path, executor: LocalProcessExecutor) -> None:
        self.directory = directory
        self.uri = join_uri(directory / "store", "runs", "a-run")
        self.store: Store = open_store(self.uri)
        self.executor = executor
        self.handles: list[aiodiloco.ReplicaHandle] = []
        self.terms = _TERMS
        self._beat = 0

    async def record(self, n_replicas: int) -> None:
        lease = {"ttl_s": self.terms.ttl_s, "beat_s": self.terms.beat_s, "binds_replicas": True}
        record = {"version": 1, "n_replicas": n_replicas, "lease": lease}
        await self.store.put("run.json", json.dumps(record).encode())

    async def beat(self, **fields: Any) -> None:
        self._beat += 1
        await self.store.put(lease_key(1), LeaseDocument(1, self._beat, "the test", self.terms, **fields).to_json())

    async def beat_until_ready(self, kinds: list[str]) -> None:
        await self.record(len(kinds))
        await self.beat()
        args: dict[str, Any] = {
            "rendezvous_uri": self.uri,
            "world_size": len(kinds),
            "directory": str(self.directory),
            "kinds": kinds,
        }
        self.handles = await self.executor.launch_replicas(len(kinds), leased.by_rank, args)
        with anyio.fail_after(60):
            while len(list(self.directory.glob("*.ready"))) < len(kinds):
                await anyio.sleep(_TERMS.beat_s / 2)
                await self.beat()

    async def statuses(self) -> list[str]:
        return [str(await self.executor.poll(handle)) for handle in self.handles]


@pytest.fixture
async def run(tmp_path: Path, executor: LocalProcessExecutor) -> AsyncIterator[Run]:
    run = Run(tmp_path, executor)
    async with run.store:
        yield run


async def test_all_end_when_the_driver_falls_silent_whatever_they_are_doing(run: Run) -> None:
    kinds = [kind for kind in leased.KINDS if "told" not in kind]
    await run.beat_until_ready(kinds)
    silent_since = time.monotonic()
    await anyio.sleep(_TERMS.ttl_s / 2)
    assert await run.statuses() == ["running"] * len(kinds)
    rows = await run.executor.collect(run.handles, timeout=60, policy=WaitAll())
    assert time.monotonic() - silent_since < _TERMS.ttl_s + _TERMS.beat_s + _SLACK_S
    assert [(row.exit_code, row.preempted) for row in rows] == [(LeaseExpiredError.exit_code, True)] * len(kinds)
    hard = [kind for kind, row in zip(kinds, rows, strict=True) if "did not stop in time" in str(row.error)]
    assert {"async, blocking the loop", "sync, in a long step"} <= set(hard)


async def test_those_whose_rank_was_started_again_end_and_all_end_with_the_run(run: Run) -> None:
    kinds = ["async, waiting", "async, told its incarnation", "async, told its incarnation"]
    await run.beat_until_ready(kinds)
    while await run.executor.poll(run.handles[1]) == "running":
        await run.beat(incarnations={0: 1, 1: 1})
        await anyio.sleep(_TERMS.beat_s / 2)
    [row] = await run.executor.collect(run.handles[1:2], timeout=10)
    assert row.exit_code == LeaseExpiredError.exit_code
    assert await run.statuses() == ["running", "failed", "running"]
    began = time.monotonic()
    await run.beat(state=LeaseState.ended)
    await run.executor.collect(run.handles, timeout=60, policy=WaitAll())
    assert time.monotonic() - began < _TERMS.beat_s + _SLACK_S
    assert await run.statuses() == ["failed"] * 3


async def test_the_error_comes_out_of_whatever_the_training_is_doing(run: Run) -> None:
    """Given the time: here half a beat is 2.5 s."""
    kinds = ["async, waiting", "sync, stepping", "sync, waiting for a round"]
    run.terms = LeaseTerms.of(30.0)
    await run.beat_until_ready(kinds)
    await run.beat(state=LeaseState.ended)
    rows = await run.executor.collect(run.handles, timeout=60, policy=WaitAll())
    assert [row.error for row in rows] == [
        f"LeaseExpiredError: rank {rank} ends itself: the run is over" for rank in range(len(kinds))
    ]
    assert [row.exit_code for row in rows] == [LeaseExpiredError.exit_code] * len(kinds)


async def test_those_who_cannot_reach_the_store_end_as_well(run: Run) -> None:
    await run.beat_until_ready(["async, waiting"])
    (run.directory / "store").rename(run.directory / "moved away")
    rows = await run.executor.collect(run.handles, timeout=_TERMS.ttl_s + _TERMS.beat_s + _SLACK_S)
    assert [row.exit_code for row in rows] == [LeaseExpiredError.exit_code]


async def test_without_a_lease_nobody_watches(tmp_path: Path) -> None:
    async with aiodiloco.join(tmp_path, rank=0, world_size=1) as replica:
        assert replica.rank == 0
    async with open_store(tmp_path) as store:
        await store.put("run.json", b'{"version": 1, "n_replicas": 1, "lease": {"ttl_s": 1, "binds_replicas": false}}')
    async with aiodiloco.join(tmp_path, rank=0, world_size=1):
        await anyio.sleep(1.2)


async def test_leaving_in_time_disarms_the_switch(run: Run) -> None:
    """In this very process, which would otherwise end here."""
    await run.record(1)
    async with aiodiloco.join(run.uri, rank=0, world_size=1):
        pass
    with pytest.raises(ZeroDivisionError):
        async with aiodiloco.join(run.uri, rank=0, world_size=1):
            _ = 1 / 0
    await anyio.to_thread.run_sync(_join_and_leave, run.uri)
    await anyio.sleep(_TERMS.ttl_s + _TERMS.beat_s)


def _join_and_leave(uri: str) -> None:
    with aiodiloco.join_sync(uri, rank=0, world_size=1):
        pass
