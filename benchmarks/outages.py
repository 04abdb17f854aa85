"""What it costs to lose a replica again and again: one of four is killed every 20 s for 3 minutes.

    python benchmarks/outages.py [--seconds 180] [--every 20] [--replicas 4] [--steps N] [--seed 0]

Trains the demo's model twice with the same seed, each time with real processes that meet in a file store: undisturbed,
and with a replica killed by SIGKILL every so often, each in turn. The killed are started again by the run's policy and
come back from checkpoint and store while the others go on. Compares held-out losses after equal rounds, and checks that
the event log tells of every kill: that the process ended, that it was started again, which rounds it missed, in which
it was back. Without --steps it measures for some seconds how many will outlast the kills; on a machine whose load
changes, give a number. Writes a table, numbers and a plot to benchmarks/out/outages.{md,json,png}; exits with 1 if a
loss is further off than 2 %, or a kill is not accounted for.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import torch

from aiodiloco import LocalProcessExecutor, Respawn, launch, raise_for_failures
from aiodiloco.demo.chronicle import Chronicle, Outage, RoundSeen
from aiodiloco.demo.figures import BLUE, ORANGE, draw_losses, draw_participation, picture, shade_outages
from aiodiloco.demo.kill import kill_replica, wait_for_round
from aiodiloco.demo.settings import DemoSettings
from aiodiloco.demo.train import train_with_diloco

if TYPE_CHECKING:
    from aiodiloco import Event, Run

OUT = Path(__file__).parent / "out"

ALLOWED = 0.02
BACKOFF_S = 4.0  # longer than the others usually wait, so that a killed rank is missed; doubles for each further kill
LONGEST_ABSENCE_S = 30.0
CALIBRATION_STEPS = 100
TIMEOUT_S = 3600.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """A replica that was killed, so many seconds after the first round."""

    at_s: float
    rank: int


class Training:
    """One run: what was done to it, and what its log says.

    Attributes:
        kills: In order.
        chronicle: Of its events.
        losses: Inner step -> held-out loss of the outer weights; a set, since every replica that was there evaluates.
        seen_s: Round -> when the first event that mentions it was read, in seconds since the launch.
    """

    def __init__(self, settings: DemoSettings) -> None:
        self.settings = settings
        self.kills: list[Kill] = []
        self.chronicle = Chronicle()
        self.losses: dict[int, set[float]] = {}
        self.seen_s: dict[int, float] = {}
        self.preempted: set[tuple[int, int]] = set()
        self.seconds = 0.0

    async def run(self, scratch: Path, *, every_s: float = 0.0, for_s: float = 0.0) -> None:
        """Train to the end; kill a replica every `every_s` seconds, for `for_s` of them."""
        settings, began = self.settings, time.monotonic()
        args = {
            "steps": settings.steps,
            "sync_every": settings.sync_every,
            "wire": settings.wire,
            "seed": settings.seed,
            "evaluate_at": settings.evaluate_at(),
            "evaluators": list(range(settings.replicas)),
            "min_replicas": max(1, settings.replicas - 1),
        }
        policy = Respawn(max_restarts=0, max_preemptions=100, backoff=BACKOFF_S)
        async with (
            LocalProcessExecutor(root=scratch / "replicas") as executor,
            launch(
                executor, train_with_diloco, settings.replicas,
                store=scratch / "store", timeout=TIMEOUT_S, policy=policy, args=args,
            ) as run,
            anyio.create_task_group() as tg,
        ):  # fmt: skip
            tg.start_soon(self._kill, run, executor, every_s, for_s)
            async for event in run.events():
                self._take(event, time.monotonic() - began)
            results = await run.wait()
            tg.cancel_scope.cancel()
        self.seconds = time.monotonic() - began
        raise_for_failures(results)
        rows: list[Any] = [result.result for result in results]
        if len({row["weights"] for row in rows}) != 1:
            sys.exit("the replicas ended with different weights")
        self.losses[settings.steps] = {row["held_out_loss"] for row in rows}

    async def _kill(self, run: Run, executor: LocalProcessExecutor, every_s: float, for_s: float) -> None:
        await wait_for_round(run, 1)
        began = time.monotonic()
        for number in range(int(for_s // every_s) if every_s else 0):
            await anyio.sleep(began + (number + 1) * every_s - time.monotonic())
            rank = number % self.settings.replicas
            while not await kill_replica(run, rank, executor):  # noqa: ASYNC110 - still away: a process elsewhere
                await anyio.sleep(0.1)
            self.kills.append(Kill(round(time.monotonic() - began, 1), rank))
            print(f"  {self.kills[-1].at_s:5.1f} s: killed replica {rank}", file=sys.stderr, flush=True)

    def _take(self, event: Event, now_s: float) -> None:
        self.chronicle.take(event)
        if event.kind == "round":
            self.seen_s.setdefault(int(str(event.data["round"])) + 1, now_s)
        elif event.kind == "ended" and event.data["preempted"]:
            self.preempted.add((int(str(event.data["rank"])), int(str(event.data["incarnation"]))))
        elif "held_out_loss" in event.data:
            self.losses.setdefault(int(str(event.data["step"])), set()).add(float(str(event.data["held_out_loss"])))

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(round, held-out loss) in order."""
        return [(-(-step // self.settings.sync_every), min(losses)) for step, losses in sorted(self.losses.items())]

    @property
    def longest_pause_s(self) -> float:
        """The longest time between two rounds, as the driver saw them; logs are written once a second."""
        times = [self.seen_s[number] for number in sorted(self.seen_s)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def complaints(self) -> list[str]:
        """Return what the log does not account for."""
        found = [f"replicas evaluated differently after step {step}" for step, ls in self.losses.items() if len(ls) > 1]
        lost = [(one.rank, one.incarnation) for one in self.chronicle.outages]
        if sorted(one.rank for one in self.kills) != sorted(rank for rank, _ in lost):
            found.append(f"{len(self.kills)} kills, but the log tells of the ends of {lost}")
        if self.preempted != set(lost):
            found.append(f"not all ends are said to have come from outside: {sorted(set(lost) - self.preempted)}")
        for one in self.chronicle.outages:
            name = f"the end of {one.rank}-{one.incarnation}"
            if not one.is_respawned:
                found.append(f"{name}: it was not started again")
            elif one.back_in is None:
                found.append(f"{name}: it was in no round any more")
        return found


async def measure(settings: DemoSettings | None, base: DemoSettings, every_s: float, for_s: float) -> list[Training]:
    """Train undisturbed and disturbed, and return both."""
    with tempfile.TemporaryDirectory(prefix="aiodiloco-outages-") as scratch:
        if settings is None:
            trial = Training(dataclasses.replace(base, steps=CALIBRATION_STEPS))
            await trial.run(Path(scratch, "trial"))
            rounds = max(trial.seen_s)
            per_round_s = (trial.seen_s[rounds] - trial.seen_s[1]) / (rounds - 1)
            needed = int((for_s + LONGEST_ABSENCE_S) / per_round_s) + 1
            settings = dataclasses.replace(base, steps=needed * base.sync_every)
        calm, disturbed = Training(settings), Training(settings)
        print(f"undisturbed, {settings.steps} steps", file=sys.stderr, flush=True)
        await calm.run(Path(scratch, "calm"))
        print(f"disturbed, {settings.steps} steps", file=sys.stderr, flush=True)
        await disturbed.run(Path(scratch, "disturbed"), every_s=every_s, for_s=for_s)
    return [calm, disturbed]


def compare(calm: Training, disturbed: Training) -> list[tuple[int, float]]:
    """Return (round, loss of the disturbed run over that of the other) wherever both were evaluated."""
    reference = dict(calm.curve)
    return [(number, loss / reference[number] - 1) for number, loss in disturbed.curve if number in reference]


def make_table(calm: Training, disturbed: Training) -> str:
    """Return the figures as Markdown."""
    over = compare(calm, disturbed)
    members = [disturbed.settings.replicas - len(seen.absent) for seen in disturbed.chronicle.participation]
    lines = [
        "| run | rounds | held-out loss | seconds | longest pause between rounds | in a round, on average |",
        "|---|---|---|---|---|---|",
        f"| undisturbed | {len(calm.chronicle.rounds)} | {calm.curve[-1][1]:.4f} | {calm.seconds:.0f} "
        f"| {calm.longest_pause_s:.1f} s | {_mean_members(calm):.2f} |",
        f"| {len(disturbed.kills)} kills | {len(members)} | {disturbed.curve[-1][1]:.4f} ({over[-1][1]:+.2%}) "
        f"| {disturbed.seconds:.0f} | {disturbed.longest_pause_s:.1f} s | {_mean_members(disturbed):.2f} |",
        "",
        f"Furthest apart after equal rounds: {max((abs(o), n) for n, o in over)[0]:.2%}.",
        "",
        "| killed after | replica | process | in round | rounds without it | back in round | from checkpoint |",
        "|---|---|---|---|---|---|---|",
    ]
    for kill, one in zip(disturbed.kills, disturbed.chronicle.outages, strict=False):
        lines.append(
            f"| {kill.at_s} s | {one.rank} | {one.rank}-{one.incarnation} | {one.in_round} | {len(one.missed)} "
            f"| {one.back_in} | {one.restored_from} |"
        )
    return "\n".join(lines)


def _mean_members(training: Training) -> float:
    rounds = training.chronicle.participation
    return training.settings.replicas - sum(len(seen.absent) for seen in rounds) / len(rounds)


def draw(calm: Training, disturbed: Training, path: Path) -> None:
    """Write losses, their difference, and who was in which round as a PNG."""
    every = disturbed.settings.sync_every
    rounds = [RoundSeen(number, seen.absent) for number, seen in sorted(disturbed.chronicle.rounds.items())]
    outages = [_by_round(one, every) for one in disturbed.chronicle.outages]
    footnote = (
        f"{disturbed.settings.replicas} replicas of 0.46M parameters, {every} inner steps per round, a checkpoint "
        "every 4 rounds.\nKilled by SIGKILL, one after the other; shaded: rounds that were made without one."
    )
    with picture(path, inches=(9, 7), footnote=footnote) as figure:
        losses, difference, presence = figure.subplots(3, 1, height_ratios=(4, 1.6, 1.4), sharex=True)
        curves = [(f"{len(disturbed.kills)} kills", disturbed.curve, ORANGE), ("undisturbed", calm.curve, BLUE)]
        draw_losses(losses, curves)
        losses.set_xlabel("")
        difference.plot(
            *zip(*compare(calm, disturbed), strict=True), color=ORANGE, marker="o", markersize=4, clip_on=False
        )
        difference.set_title("Over the undisturbed run, after equal rounds (allowed: 2 %)")
        difference.set_ylim(-ALLOWED, ALLOWED)
        difference.yaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
        difference.axhline(0, color=BLUE, linewidth=1)
        for axes in (losses, difference):
            shade_outages(axes, rounds)
        draw_participation(presence, rounds, outages, disturbed.settings.replicas)
        presence.set_xlabel("rounds")


def _by_round(outage: Outage, sync_every: int) -> Outage:
    return dataclasses.replace(outage, step=outage.step // sync_every)


def to_json(training: Training) -> dict[str, Any]:
    """Return all of it as JSON values."""
    return {
        "seconds": training.seconds,
        "longest_pause_s": training.longest_pause_s,
        "curve": training.curve,
        "kills": [dataclasses.asdict(kill) for kill in training.kills],
        "outages": [dataclasses.asdict(outage) for outage in training.chronicle.outages],
        "absent": {number: seen.absent for number, seen in sorted(training.chronicle.rounds.items()) if seen.absent},
    }


def main() -> None:
    """Run, write, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="for how long replicas are killed")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--steps", type=int, help="inner steps; by default as many as outlast the kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    base = DemoSettings(replicas=given.replicas, seed=given.seed)
    settings = None if given.steps is None else dataclasses.replace(base, steps=given.steps)
    calm, disturbed = anyio.run(measure, settings, base, given.every, given.seconds)
    OUT.mkdir(exist_ok=True)
    stem, table = OUT / "outages", make_table(calm, disturbed)
    stem.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    numbers = {"settings": dataclasses.asdict(calm.settings), "machine": about, "every_s": given.every}
    runs = {"undisturbed": to_json(calm), "disturbed": to_json(disturbed)}
    stem.with_suffix(".json").write_text(json.dumps({**numbers, **runs}, indent=2) + "\n", encoding="utf-8")
    draw(calm, disturbed, stem.with_suffix(".png"))
    print(f"{table}\n\nwrote {stem}.{{md,json,png}}")
    wrong = [*calm.complaints(), *disturbed.complaints()]
    if len(disturbed.kills) < given.seconds // given.every:
        wrong.append(f"the run was over after {len(disturbed.kills)} kills: give it more --steps")
    wrong += [f"round {n}: {over:+.2%} of loss" for n, over in compare(calm, disturbed) if abs(over) > ALLOWED]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
