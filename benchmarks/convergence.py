"""What DiLoCo loses against data parallel on equal tokens, and gains over one replica alone.

    python benchmarks/convergence.py [--steps 600] [--sync-every 20] [--replicas 4] [--wire fp32] [--seed 0]

DiLoCo runs as users run it: local replicas that meet in a file store. Data parallel is one process that takes, at every
step, the batches of all replicas at once, which is what data parallel computes. All start from the same weights, with
the same inner optimizer, and are measured on the same held-out windows. Writes a table, numbers and a plot to
benchmarks/out/convergence-<steps>.{md,json,png}, and exits with 1 if DiLoCo is further from data parallel than it may.
"""

from __future__ import annotations

import argparse
import dataclasses
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

from aiodiloco import LocalProcessExecutor, join_sync, join_uri, open_store, raise_for_failures, read_events
from aiodiloco.demo.data import ReplicaData
from aiodiloco.demo.figures import BLUE, GREEN, ORANGE, draw_losses, picture
from aiodiloco.demo.report import held_out_curve
from aiodiloco.demo.settings import DemoSettings
from aiodiloco.demo.train import evaluate, new_model, train_alone, train_step, train_with_diloco

if TYPE_CHECKING:
    from collections.abc import Callable

OUT = Path(__file__).parent / "out"

PREDICTED = {600: 0.062, 2400: 0.032}  # steps -> loss over data parallel, of such a model at 4 replicas and H = 20
ALLOWED = {600: 0.07, 2400: 0.04}


def train_data_parallel(
    *, rank: int, num_shards: int, rendezvous_uri: str, steps: int, seed: int, evaluate_at: list[int]
) -> dict[str, float]:
    """Train one model on the batches of all ranks together."""
    model, optimizer = new_model(seed)
    shards = [ReplicaData(rank=r, world_size=num_shards, seed=seed, context=model.context) for r in range(num_shards)]
    held_out = shards[0].held_out
    with join_sync(rendezvous_uri, rank=rank, world_size=1) as replica:
        for step in range(1, steps + 1):
            inputs, targets = zip(*(shard.batch(step - 1) for shard in shards), strict=True)
            train_step(model, optimizer, (torch.cat(inputs), torch.cat(targets)))
            if step in evaluate_at:
                replica.report(step, held_out_loss=evaluate(model, held_out))
    return {"held_out_loss": evaluate(model, held_out)}


async def measure(settings: DemoSettings) -> dict[str, Any]:
    """Train all three side by side and return what came out, as JSON values."""
    args = {
        "steps": settings.steps,
        "seed": settings.seed,
        "evaluate_at": settings.evaluate_at(),
    }
    diloco_args = {
        **args,
        "world_size": settings.replicas,
        "sync_every": settings.sync_every,
        "wire": settings.wire,
    }
    args["num_shards"] = settings.replicas
    outcomes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="aiodiloco-convergence-") as scratch:
        async with LocalProcessExecutor(root=Path(scratch, "replicas")) as executor, anyio.create_task_group() as tg:

            async def train(name: str, number: int, entrypoint: Callable[..., object], args: dict[str, Any]) -> None:
                began = time.monotonic()
                uri = join_uri(Path(scratch, "store"), "runs", name)
                handles = await executor.launch_replicas(number, entrypoint, {**args, "rendezvous_uri": uri})
                results = await executor.collect(handles)
                raise_for_failures(results)
                async with open_store(uri) as store:
                    events, _ = await read_events(store)
                returned: list[Any] = [result.result for result in results]
                outcomes[name] = {
                    "curve": held_out_curve(events, last=(settings.steps, returned[0]["held_out_loss"])),
                    "seconds": time.monotonic() - began,
                    "results": returned,
                }

            tg.start_soon(train, "diloco", settings.replicas, train_with_diloco, diloco_args)
            tg.start_soon(train, "data-parallel", 1, train_data_parallel, args)
            tg.start_soon(train, "alone", 1, train_alone, args)
    return outcomes


def make_table(settings: DemoSettings, outcomes: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    reference = loss_of(outcomes["data-parallel"])
    names = {
        "data-parallel": f"data parallel, batch {settings.replicas} × 8",
        "diloco": f"DiLoCo, {settings.replicas} replicas, H = {settings.sync_every}, {settings.wire}",
        "alone": "one replica alone",
    }
    lines = ["| run | held-out loss | over data parallel | predicted | seconds |", "|---|---|---|---|---|"]
    for key, name in names.items():
        over = f"{loss_of(outcomes[key]) / reference - 1:+.1%}"
        expected = f"{PREDICTED[settings.steps]:+.1%}" if key == "diloco" and is_predicted(settings) else ""
        loss, seconds = loss_of(outcomes[key]), outcomes[key]["seconds"]
        lines.append(f"| {name} | {loss:.4f} | {over} | {expected} | {seconds:.0f} |")
    return "\n".join(lines)


def loss_of(outcome: dict[str, Any]) -> float:
    """Return the held-out loss at the end."""
    return float(outcome["curve"][-1][1])


def is_predicted(settings: DemoSettings) -> bool:
    """Return whether there is a prediction for these settings."""
    return settings.steps in PREDICTED and settings.replicas == 4 and settings.sync_every == 20


def draw(settings: DemoSettings, outcomes: dict[str, Any], path: Path) -> None:
    """Write the curves as a PNG."""
    footnote = (
        f"{settings.replicas} replicas, AdamW 1e-3, batch 8 × 64 bytes each; outer Nesterov SGD 0.7 / 0.9 every "
        f"{settings.sync_every} steps, {settings.wire}.\nData parallel: the same tokens, in one batch per step."
    )
    with picture(path, inches=(8, 4.6), footnote=footnote) as figure:
        curves = [
            ("one replica alone", outcomes["alone"]["curve"], ORANGE),
            (f"DiLoCo, H = {settings.sync_every}", outcomes["diloco"]["curve"], BLUE),
            ("data parallel", outcomes["data-parallel"]["curve"], GREEN),
        ]
        draw_losses(figure.subplots(), curves)


def main() -> None:
    """Run, write, and judge."""
    default = DemoSettings(steps=600, wire="fp32")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=default.steps, help="inner steps; predictions exist for 600, 2400")
    parser.add_argument("--sync-every", type=int, default=default.sync_every)
    parser.add_argument("--replicas", type=int, default=default.replicas)
    parser.add_argument("--wire", default=default.wire)
    parser.add_argument("--seed", type=int, default=default.seed)
    try:
        settings = DemoSettings(**vars(parser.parse_args()))
    except ValueError as exc:
        parser.error(str(exc))
    outcomes = anyio.run(measure, settings)
    OUT.mkdir(exist_ok=True)
    stem = OUT / f"convergence-{settings.steps}"
    table = make_table(settings, outcomes)
    stem.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    numbers = {"settings": dataclasses.asdict(settings), "machine": about, "runs": outcomes}
    stem.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    draw(settings, outcomes, stem.with_suffix(".png"))
    print(f"{settings.steps} steps, seed {settings.seed}\n\n{table}\n\nwrote {stem}.{{md,json,png}}")
    over = loss_of(outcomes["diloco"]) / loss_of(outcomes["data-parallel"]) - 1
    if is_predicted(settings) and over > ALLOWED[settings.steps]:
        sys.exit(f"DiLoCo is {over:+.1%} over data parallel, and may be {ALLOWED[settings.steps]:+.1%} at most")


if __name__ == "__main__":
    main()
