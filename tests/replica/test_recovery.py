"""Replicas that die and come back, and runs that stop and go on, in virtual time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import torch

from aiodiloco import read_events
from aiodiloco.checkpoint import list_rounds
from aiodiloco.checkpoint.layout import CheckpointKeys
from aiodiloco.replica import join, join_sync
from aiodiloco.store import MemoryStore, open_store
from aiodiloco.testing.simulation import run_in_virtual_time
from tests.diloco.models import make_model, train_step

if TYPE_CHECKING:
    from pathlib import Path

WORLD, TOTAL, SYNC_EVERY, STEP_S = 3, 60, 5, 1.0


class Run:
    """Replicas of one run as tasks, each of which can be killed and started again."""

    def __init__(self, name: str, tasks: Any, **options: Any) -> None:
        self.uri = f"memory://{name}"
        self.finals: dict[int, bytes] = {}
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.pauses: dict[tuple[int, int], float] = {}  # (rank, step) -> seconds it stands still after that step
        self.rounds: dict[int, list[int]] = {rank: [] for rank in range(WORLD)}
        self._tasks = tasks
        self._options = {"checkpoint_every": 1, **options}

    def start(self, rank: int) -> None:
        self._tasks.start_soon(self._train, rank)

    def start_all(self) -> None:
        for rank in range(WORLD):
            self.start(rank)

    def kill(self, rank: int) -> None:
        self.scopes[rank].cancel()

    async def _train(self, rank: int) -> None:
        options = dict(self._options)
        joining = {name: options.pop(name) for name in ("min_replicas", "grace") if name in options}
        with anyio.CancelScope() as self.scopes[rank]:
            async with join(self.uri, rank=rank, world_size=WORLD, **joining) as replica:
                model = make_model()
                inner = torch.optim.AdamW(model.parameters(), lr=0.01)
                diloco = replica.diloco(model, inner, sync_every=SYNC_EVERY, wire="bf16", **options)
                for step in diloco.steps(TOTAL):
                    loss = train_step(model, inner, rank, step)
                    await anyio.sleep(STEP_S + self.pauses.get((rank, step), 0.0))
                    await diloco.step(loss=loss, tokens=8)
                    self.rounds[rank].append(diloco.round)
                with diloco.outer_weights():
                    weights = [p.detach().flatten() for p in model.parameters()]
                assert diloco.inner_step == TOTAL
                self.finals[rank] = bytes(torch.cat(weights).view(torch.uint8).tolist())


def simulate(main: Any, *args: Any) -> Any:
    return run_in_virtual_time(partial(main, *args))


async def uninterrupted(name: str, **options: Any) -> bytes:
    async with anyio.create_task_group() as tg:
        run = Run(name, tg, **options)
        run.start_all()
    assert set(run.finals) == set(range(WORLD))
    assert len(set(run.finals.values())) == 1
    return run.finals[0]


@pytest.mark.parametrize(
    ("killed_at", "every"),
    [(0.5, 1), (0.5, None), (7.5, None), (12.5, 1), (12.5, 3), (31.5, 1), (31.5, 4), (58.5, 1), (58.5, 3)],
)
def test_a_rank_that_dies_and_comes_back_changes_nothing_where_all_are_needed(
    killed_at: float, every: int | None
) -> None:
    """The others wait; it goes on from its last checkpoint: the run ends with the very bits of one undisturbed.

    Also where it must repeat rounds that were after it, and its AdamW with them.
    """

    async def main() -> None:
        expected = await uninterrupted(f"calm-{killed_at}-{every}", checkpoint_every=every)
        async with anyio.create_task_group() as tg:
            run = Run(f"killed-{killed_at}-{every}", tg, checkpoint_every=every)
            run.start_all()
            await anyio.sleep(killed_at)
            run.kill(1)
            await anyio.sleep(40)
            run.start(1)
        assert run.finals == dict.fromkeys(range(WORLD), expected)

    simulate(main)


@pytest.mark.parametrize("killed_at", [12.5, 31.5])
def test_the_others_train_on_while_a_rank_is_away_and_it_comes_back_to_the_bit(killed_at: float) -> None:
    """With `min_replicas`: rounds go on without it, and it is in again two rounds after its return at the latest."""

    async def main() -> tuple[int, list[Any]]:
        uri = f"elastic-{killed_at}"
        async with anyio.create_task_group() as tg:
            run = Run(uri, tg, min_replicas=2, grace=3.0)
            run.start_all()
            await anyio.sleep(killed_at)
            run.kill(2)
            await anyio.sleep(12)
            assert len(run.rounds[0]) > killed_at / STEP_S
            run.start(2)
        assert len(set(run.finals.values())) == 1
        assert set(run.finals) == set(range(WORLD))
        async with open_store(run.uri) as store:
            events, _ = await read_events(store)
        return len(run.rounds[0]), [e.data for e in events if e.kind == "round" and e.writer == "0-0"]

    _, rounds = simulate(main)
    present = [data["num_members"] for data in rounds]
    assert present.count(2) in range(1, 7)
    assert present[-1] == 3
    first_gap = present.index(2)
    assert present[:first_gap] == [3] * first_gap
    assert anyio is not None


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stopped_at", [13.5, 29.0])
def test_a_run_that_stopped_goes_on_to_the_bit(stopped_at: float, every: int) -> None:
    """All replicas die between two rounds, and all start again, in any order and much later."""

    async def main() -> None:
        expected = await uninterrupted(f"whole-{stopped_at}-{every}")
        async with anyio.create_task_group() as tg:
            run = Run(f"stopped-{stopped_at}-{every}", tg, checkpoint_every=every)
            run.start_all()
            await anyio.sleep(stopped_at)
            for rank in range(WORLD):
                run.kill(rank)
            await anyio.sleep(3600)
            for rank in (2, 0, 1):
                run.start(rank)
                await anyio.sleep(7)
        assert run.finals == dict.fromkeys(range(WORLD), expected)
        async with open_store(run.uri) as store:
            events, _ = await read_events(store)
        seen = [event.data for event in events if event.kind == "step" and event.writer == "0-1"]
        assert (seen[-1]["step"], seen[-1]["tokens"]) == (TOTAL, 8 * TOTAL)

    simulate(main)


@pytest.mark.parametrize("step", [8, 9], ids=["between-rounds", "before-its-contribution"])
def test_a_replica_that_stood_still_until_its_rounds_were_deleted_goes_on_from_a_checkpoint(step: int) -> None:
    """It lives, and holds its rank: what it missed is a matter of reading, not of starting it again."""

    async def main() -> list[str]:
        uri = f"far-behind-{step}"
        async with anyio.create_task_group() as tg:
            run = Run(uri, tg, min_replicas=2, grace=3.0)
            run.pauses[2, step] = 40.0
            run.start_all()
        assert len(set(run.finals.values())) == 1
        assert set(run.finals) == set(range(WORLD))
        assert run.rounds[2][-1] == TOTAL // SYNC_EVERY
        assert len(run.rounds[2]) < TOTAL - 20
        async with open_store(run.uri) as store:
            events, _ = await read_events(store)
        return [e.kind for e in events if e.writer == "2-0"]

    assert "restored" in simulate(main)


def test_a_run_whose_latest_checkpoint_is_damaged_goes_on_from_the_one_before() -> None:
    """All ranks, to the same bits: the rounds since are there, also when they die again while they take them."""

    async def main() -> None:
        async with anyio.create_task_group() as tg:
            run = Run("damaged", tg, checkpoint_every=2)
            run.start_all()
            await anyio.sleep(29.0)
            for rank in range(WORLD):
                run.kill(rank)
            store = MemoryStore("damaged")
            latest = (await list_rounds(store))[-1]
            await store.put(CheckpointKeys(0, latest).outer(1, 0), b"rubbish")
            for _ in range(2):
                for rank in range(WORLD):
                    run.start(rank)
                await anyio.sleep(1.5)
                for rank in range(WORLD):
                    run.kill(rank)
            run.start_all()
        assert set(run.finals) == set(range(WORLD))
        assert len(set(run.finals.values())) == 1

    simulate(main)


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 1}], ids=["replayed", "checkpointed"])
def test_sync_replicas_come_back_in_real_time_too(tmp_path: Path, options: dict[str, Any]) -> None:
    """With real threads. Without checkpoints from the first round on, as long as all rounds are there."""

    def train(uri: Path, total: int) -> bytes:
        with join_sync(uri, rank=0, world_size=1) as replica:
            model = make_model()
            inner = torch.optim.AdamW(model.parameters(), lr=0.01)
            diloco = replica.diloco(model, inner, sync_every=5, **options)
            for step in diloco.steps(total):
                diloco.step(loss=train_step(model, inner, 0, step))
            assert (diloco.inner_step, diloco.round) == (total, total // 5)
        return bytes(torch.cat([p.detach().flatten() for p in model.parameters()]).view(torch.uint8).tolist())

    expected = train(tmp_path / "whole", 10)
    train(tmp_path / "twice", 5)
    assert train(tmp_path / "twice", 10) == expected


def test_old_rounds_and_checkpoints_go_when_later_checkpoints_are_whole() -> None:
    """The store of a long run does not grow with its rounds."""

    async def main() -> None:
        await uninterrupted("collected", checkpoint_every=2)
        store = MemoryStore("collected")
        rounds = {int(key.split("/")[1][:8]) for key in [k async for k in store.list("rounds/")] if "/0-0/" in key}
        checkpoints = {key.split("/")[2] for key in [k async for k in store.list("checkpoints/0000/")]}
        assert rounds <= set(range(6, 12))  # whoever was not the last to write learns of a checkpoint with the next one
        assert checkpoints == {"00000010", "00000012"}

    simulate(main)


@pytest.mark.parametrize("min_replicas", [None, 2])
def test_what_processes_that_died_left_goes_too(min_replicas: int | None) -> None:
    """Contributions, means that nobody took, claims and heartbeats; decisions stay, they are the run's record."""

    async def main() -> set[str]:
        name = f"left-behind-{min_replicas}"
        async with anyio.create_task_group() as tg:
            run = Run(name, tg, checkpoint_every=1, min_replicas=min_replicas, grace=3.0)
            run.start_all()
            for killed_at, rank in ((9.5, 1), (32.5, 0)):
                await anyio.sleep(killed_at - anyio.current_time() % 1000)
                run.kill(rank)
                await anyio.sleep(5)
                run.start(rank)
        assert set(run.finals) == set(range(WORLD))
        return {key async for key in MemoryStore(name).list()}

    keys = simulate(main)
    last = TOTAL // SYNC_EVERY
    old = [key for key in keys if key.startswith("rounds/") and int(key[7:15]) < last - 5]
    assert {key.rsplit("/", 1)[-1] for key in old} == {"decision.json"}
    kept = {key for key in keys if key.startswith(("members/", "heartbeats/"))}
    assert kept == {f"members/{member}/claim.json" for member in ("0/1", "1/1", "2/0")} | {
        f"heartbeats/{member}.json" for member in ("0/1", "1/1", "2/0")
    }


def test_a_replica_that_came_back_must_number_all_reduces_of_its_own(tmp_path: Path) -> None:
    """It cannot know how many the others made while it was away, and must not get the means of old ones."""
    with join_sync(tmp_path, rank=0, world_size=1) as replica:
        replica.all_reduce({"w": torch.ones(1)})
    with join_sync(tmp_path, rank=0, world_size=1) as replica:
        with pytest.raises(ValueError, match="came back as process 0-1"):
            replica.all_reduce({"w": torch.ones(1)})
        assert replica.all_reduce({"w": torch.ones(1)}, round=1).round == 1
