"""Kill and stop replicas and drivers at every named point: does every run come to what it should?

    python benchmarks/chaos.py [--only REGEX] [--blows restarted,lost] [--executors local,modal] [--at-once 4] [--more]

Each trial is a whole training of three real processes (six rounds), or Modal's client and container runtime against the
control plane of this machine, struck once; see `aiodiloco.testing.chaos`. Prints a row for each, writes
benchmarks/out/chaos.json and chaos.md, and exits with 1 if one had a problem. `--more` adds to what is there, so that
the matrix can be run in parts. Times are those of this machine under the load of `--at-once` trials.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.testing.chaos import POINTS, Blow, Point, blows_for
from aiodiloco.testing.chaos.places import Place, running_places
from aiodiloco.testing.chaos.trial import run_trial

if TYPE_CHECKING:
    from aiodiloco.testing.chaos.report import Report

_OUT = Path(__file__).parent / "out"
_COLUMNS = "point", "blow", "executor", "outcome", "bitwise equal", "rounds missed", "seconds"


def choose(arguments: argparse.Namespace) -> list[tuple[Point, Blow, str]]:
    """Return the trials that are asked for."""
    blows = {Blow[name] for name in arguments.blows.split(",")} if arguments.blows else set(Blow)
    return [
        (point, blow, executor)
        for executor in arguments.executors.split(",")
        for point in POINTS
        if re.search(arguments.only, point.name)
        for blow in blows_for(point)
        if blow in blows
    ]


async def run_all(trials: list[tuple[Point, Blow, str]], at_once: int) -> list[Report]:
    """Return what came of them, in their order."""
    reports: dict[int, Report] = {}
    limit = anyio.CapacityLimiter(at_once)

    async def run(number: int, places: dict[str, Place], directory: Path) -> None:
        point, blow, executor = trials[number]
        async with limit:
            directory.mkdir()  # noqa: ASYNC240 - one, of no size
            reports[number] = await run_trial(point, blow, places[executor], directory)
        print(row(reports[number].to_dict()), flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-") as root:
        async with running_places(Path(root)) as places, anyio.create_task_group() as tasks:
            for number in range(len(trials)):
                tasks.start_soon(run, number, places, Path(root) / str(number))
    return [reports[number] for number in range(len(trials))]


def row(report: dict[str, Any]) -> str:
    """Return a report as a row of a table."""
    equal = {True: "yes", False: "NO", None: "–"}[report["is_equal"]]
    missed = "–" if report["rounds_missed"] is None else report["rounds_missed"]
    cells = report["point"], report["blow"], report["executor"], report["outcome"], equal, missed, report["seconds"]
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all reports, the new instead of the old ones of the same trial, in the order of the table of points."""
    by_trial = {(r["executor"], r["point"], r["blow"]): r for r in [*old, *new]}
    order = {point.name: number for number, point in enumerate(POINTS)}
    return [r for _, r in sorted(by_trial.items(), key=lambda item: (order[item[0][1]], item[0][2], item[0][0]))]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--blows", default="")
    parser.add_argument("--executors", default="local,modal")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--more", action="store_true")
    arguments = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    reports = [report.to_dict() for report in anyio.run(run_all, choose(arguments), arguments.at_once)]
    found = _OUT / "chaos.json"
    everything = merge(json.loads(found.read_text()) if arguments.more and found.exists() else [], reports)
    _OUT.mkdir(exist_ok=True)
    found.write_text(json.dumps(everything, indent=1))
    head = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    (_OUT / "chaos.md").write_text("\n".join(head + [row(report) for report in everything]) + "\n")
    bad = [report for report in reports if report["problems"]]
    print(f"{len(reports)} trials, {len(bad)} with problems; {len(everything)} in {found}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
