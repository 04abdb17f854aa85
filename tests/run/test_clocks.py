"""Wall clocks that are an hour off, each in another direction: nothing of a run depends on them."""

# ruff: noqa: ASYNC110 - what other processes do can only be polled for

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest

import aiodiloco
from aiodiloco import Event
from aiodiloco.errors import LeaseExpiredError
from aiodiloco.executors import LocalProcessExecutor, WaitAll
from aiodiloco.lease import read_lease
from aiodiloco.run.journal import latest_handles
from aiodiloco.store import open_store

from . import clocks
from .clocks import HOUR_S, N_REPLICAS, TTL_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(120)

_REPOSITORY = Path(__file__).parents[2]
_WRONG = [0.0, HOUR_S, -HOUR_S]
_SLACK_S = 10.0  # for a machine on which everything else runs, too

# What no two runs have in common: durations, speeds, polls, process ids.
_VARIES = {"seconds", "sync_s", "tokens_per_s", "requests", "bytes_received", "link", "pid"}

Trained: TypeAlias = "tuple[list[Any], list[Event]]"  # the replicas' final weights, and the run's events


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProcessExecutor]:
    executor = LocalProcessExecutor(root=tmp_path_factory.mktemp("local"), preload=["torch", "torch._dynamo"])
    yield executor
    anyio.run(executor.close)


@pytest.fixture(scope="module")
def right(executor: LocalProcessExecutor, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What comes out with clocks that are right."""
    return anyio.run(train, executor, tmp_path_factory.mktemp("right"), [0.0] * N_REPLICAS)


async def train(executor: LocalProcessExecutor, store: Path, off_s: list[float], dies: int | None = None) -> Trained:
    launching = aiodiloco.launch(
        executor,
        clocks.train,
        N_REPLICAS,
        store=store,
        timeout=90,
        policy=aiodiloco.Respawn(max_restarts=0, backoff=0.1),
        args={"off_s": off_s, "dies": dies},
    )
    async with launching as run:
        results = await run.wait()
        events = [event async for event in run.events()]
    aiodiloco.raise_for_failures(results)
    return [result.result for result in results], events


def _timeless(events: list[Event]) -> list[tuple[str, int, str, dict[str, Any]]]:
    """Return what replicas say of their training, without what varies from run to run.

    Checkpoints come from the background, and who writes the last share of one depends on the moment.
    """
    told = [event for event in events if event.writer[0].isdecimal() and event.kind != "checkpoint"]
    kept = [(e.writer, e.seq, e.kind, {k: v for k, v in e.data.items() if k not in _VARIES}) for e in told]
    return [
        (writer, sum(other[0] == writer and other[1] < seq for other in kept), kind, data)
        for writer, seq, kind, data in sorted(kept, key=lambda one: one[:2])
    ]


async def test_training_is_the_same_to_the_bit_and_so_is_its_log_but_for_the_times(
    executor: LocalProcessExecutor, right: Trained, tmp_path: Path
) -> None:
    weights, events = await train(executor, tmp_path, _WRONG)
    assert weights == right[0]
    told, expected = _timeless(events), _timeless(right[1])
    assert len(told) > N_REPLICAS * clocks.STEPS
    assert [pair for pair in zip(told, expected, strict=True) if pair[0] != pair[1]][:3] == []
    began = next(event.time for event in events if event.kind == "spawned")
    for rank, off_s in enumerate(_WRONG):
        own = [event for event in events if event.writer == f"{rank}-0"]
        assert abs(own[0].time - began - off_s) < HOUR_S / 4, "this process's clock was wrong indeed"
        assert abs(own[-1].time - began + off_s) < HOUR_S / 4, "and jumped by twice as much"


async def test_a_replica_that_dies_and_comes_back_with_another_wrong_clock_changes_nothing(
    executor: LocalProcessExecutor, right: Trained, tmp_path: Path
) -> None:
    weights, events = await train(executor, tmp_path, _WRONG, dies=1)
    assert weights == right[0]
    assert [event.data["rank"] for event in events if event.kind == "respawned"] == [1]


async def test_replicas_of_a_dead_driver_end_in_time_whatever_their_clocks_and_its_own_say(tmp_path: Path) -> None:
    driver = _Driver(tmp_path)
    try:
        with anyio.fail_after(60):
            while driver.num_joined() < N_REPLICAS:
                await anyio.sleep(0.05)
        async with LocalProcessExecutor(root=tmp_path / "executor", detach=True) as executor:
            async with open_store(f"{driver.store}/runs/a-run") as opened:
                handles = await latest_handles(opened, N_REPLICAS)
                await _wait_for_beats(opened, 15)  # two and a half times to live
            assert [str(await executor.poll(handle)) for handle in handles] == ["running"] * N_REPLICAS
            driver.kill()
            killed_at = time.monotonic()
            rows = await executor.collect(handles, timeout=60, policy=WaitAll())
            assert time.monotonic() - killed_at < TTL_S + TTL_S / 6 + _SLACK_S
            assert [row.exit_code for row in rows] == [LeaseExpiredError.exit_code] * N_REPLICAS
    finally:
        driver.kill()


class _Driver:
    """A driver with a clock that is an hour ahead, in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.store = str(directory / "store")
        self._directory = directory
        places = [str(directory), self.store]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.run.clocks", *places, str(HOUR_S), *map(str, _WRONG)], cwd=_REPOSITORY
        )

    def num_joined(self) -> int:
        return len(list(self._directory.glob("*.joined")))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)


async def _wait_for_beats(store: aiodiloco.Store, number: int) -> None:
    """Return when the driver has beaten so many times more."""
    first = await read_lease(store)
    assert first is not None
    with anyio.fail_after(60):
        while (document := await read_lease(store)) is None or document.beat < first.beat + number:
            await anyio.sleep(0.05)


def test_nobody_holds_a_clock_that_the_tests_above_could_not_set() -> None:
    """They replace what the modules `time` and `datetime` hold: whoever kept the clock itself would escape them."""
    package = _REPOSITORY / "aiodiloco"
    paths = [path for path in sorted(package.rglob("*.py")) if package / "testing" not in path.parents]
    assert [f"{path}:{line}" for path in paths for line in _kept_clocks(path.read_text(encoding="utf-8"))] == []
    examples = ("from time import time", "def f(clock=time.time): ...", "from datetime import datetime, UTC")
    assert [_kept_clocks(code) for code in (*examples, "time.time()")] == [[1], [1], [1], []]


def _kept_clocks(code: str) -> list[int]:
    """Return the lines where a clock is imported, or passed on, and not read."""
    nodes = list(ast.walk(ast.parse(code)))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module in _CLOCKS]
    named = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return [
        *(node.lineno for node in imports if _CLOCKS[str(node.module)] & {name.name for name in node.names}),
        *(n.lineno for n in named if n.value.id == "time" and n.attr in _CLOCKS["time"] and id(n) not in called),
    ]


_CLOCKS = {"time": {"time", "time_ns", "gmtime", "localtime", "ctime"}, "datetime": {"datetime"}}
