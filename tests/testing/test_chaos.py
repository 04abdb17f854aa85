"""Real processes struck at every named point: each point once, with signals and executors in turn.

All of point, signal and executor: `python benchmarks/chaos.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.testing.chaos import POINTS, Blow, Point, blows_for
from aiodiloco.testing.chaos.places import running_places
from aiodiloco.testing.chaos.trial import run_trial

if TYPE_CHECKING:
    from pathlib import Path

    from aiodiloco.testing.chaos.report import Report

pytestmark = pytest.mark.timeout(900)  # the first one waits for all

_AT_ONCE = 4


def one_each() -> list[tuple[Point | None, Blow, str]]:
    """Return the trials: those of one kind of blow spread over the points, and the executors with them."""
    trials: list[tuple[Point | None, Blow, str]] = [(None, Blow.restarted, "local"), (None, Blow.continued, "modal")]
    for number, point in enumerate(POINTS):
        blows = blows_for(point)
        is_driver = Blow.attached in blows
        executor = ("local", "modal")[number % 5 != 0 if is_driver else number % 2]  # drivers are cheaper on Modal
        trials.append((point, blows[number // 2 % len(blows)], executor))
    mid_run = next(point for point in POINTS if Blow.abandoned in blows_for(point))
    return [*trials, (mid_run, Blow.abandoned, "local")]


TRIALS = one_each()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    """All trials, several at once: most of their time they wait."""
    root: Path = tmp_path_factory.mktemp("chaos")
    reports: dict[int, Report] = {}

    async def run_all() -> None:
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def run(number: int) -> None:
            point, blow, executor = TRIALS[number]
            async with limit:
                directory = root / str(number)
                directory.mkdir()
                reports[number] = await run_trial(point, blow, places[executor], directory)

        async with running_places(root) as places, anyio.create_task_group() as tasks:
            for number in range(len(TRIALS)):
                tasks.start_soon(run, number)

    anyio.run(run_all)
    return [reports[number] for number in range(len(TRIALS))]


@pytest.mark.parametrize(
    "number",
    range(len(TRIALS)),
    ids=[f"{'nowhere' if point is None else point.name}: {blow}, {executor}" for point, blow, executor in TRIALS],
)
def test_a_run_comes_to_what_it_should_wherever_a_process_is_struck(number: int, reports: list[Report]) -> None:
    """To the bits of an undisturbed run, or of its members; with every process accounted for and none left.

    Where all ranks are needed, none is missing in a round; else the victim alone is, and it is in again if it lives.
    """
    _, blow, _ = TRIALS[number]
    report = reports[number]
    assert report.problems == []
    if blow is not Blow.abandoned:
        assert report.is_equal
    if not blow.is_elastic:
        assert report.lost == []


def test_the_table_has_a_point_for_every_part_of_a_run() -> None:
    names = [point.name for point in POINTS]
    assert len(set(names)) == len(names) >= 36
    for word in ("claiming", "inner step", "chunk", "manifest", "decision", "owner", "outer step", "checkpoint"):
        assert any(word in name for name in names), word
