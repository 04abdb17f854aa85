"""`aiodiloco demo`: watch DiLoCo train a small model on this machine."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import anyio
import typer
from rich.console import Console

from aiodiloco.cli.exits import ending_in_good_order
from aiodiloco.cli.extras import MissingExtraError, needs_extra
from aiodiloco.demo.progress import show_progress
from aiodiloco.demo.settings import DemoSettings
from aiodiloco.demo.story import summarise
from aiodiloco.demo.table import describe_verdict, make_table
from aiodiloco.demo.units import format_count
from aiodiloco.errors import AiodilocoError, StoreAccessError

if TYPE_CHECKING:
    from aiodiloco.demo.report import DemoReport

__all__ = ["demo"]

_DEFAULT = DemoSettings()


class _Console(Console):
    """A console that lets the replicas end in good order when nobody reads on, as in `aiodiloco demo | head`."""

    def on_broken_pipe(self) -> None:
        """Raise an exception that passes event loops, where rich would raise SystemExit; click exits on it with 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def demo(
    *,
    replicas: Annotated[int, typer.Option(help="Replicas that train together.")] = _DEFAULT.replicas,
    steps: Annotated[int, typer.Option(help="Inner steps of each replica.")] = _DEFAULT.steps,
    sync_every: Annotated[int, typer.Option(help="Inner steps between two synchronisations.")] = _DEFAULT.sync_every,
    store: Annotated[
        str | None, typer.Option(help="URI or directory where they meet.", show_default="a temporary directory")
    ] = None,
    wire: Annotated[str, typer.Option(help="Format on the wire: fp32, fp16, bf16, int8 or e3m0.")] = _DEFAULT.wire,
    seed: Annotated[int, typer.Option(help="Seed of initial weights and batches.")] = _DEFAULT.seed,
    kill: Annotated[
        bool, typer.Option("--kill/--no-kill", help="Kill a replica halfway, to see it come back.")
    ] = _DEFAULT.kill,
    away: Annotated[
        float | None, typer.Option(help="Seconds before it is started again.", show_default="5 to 8")
    ] = _DEFAULT.away,
    out: Annotated[Path, typer.Option(help="Directory for demo.png and result.json.")] = Path("demo-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Train a small language model with DiLoCo, and one replica alone to compare.

    Replicas are processes of this machine; the text is the source of Python's standard library. Halfway one of them is
    killed: the others go on, and it is started again and comes back. Exits with 1 if DiLoCo does not beat the lone
    replica.
    """
    try:
        settings = DemoSettings(
            replicas=replicas, steps=steps, sync_every=sync_every, wire=wire, seed=seed, kill=kill, away=away
        )
        report = _run(settings, store, out, _Console(stderr=as_json, highlight=False))
    except StoreAccessError as exc:
        raise typer.BadParameter(str(exc), param_hint="--store") from exc
    except (AiodilocoError, MissingExtraError, FileNotFoundError) as exc:
        _fail(str(exc))
    except ValueError as exc:  # after AiodilocoError: some of those are ValueErrors too
        raise typer.BadParameter(str(exc)) from exc
    except KeyboardInterrupt:
        typer.echo("aiodiloco: interrupted; the replicas were ended", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(_to_json(report))
    if not report.is_good:
        _fail(describe_verdict(report))


def _run(settings: DemoSettings, store: str | None, out: Path, console: Console) -> DemoReport:
    with needs_extra("demo"):
        from aiodiloco.demo.app import check_demo, run_demo
        from aiodiloco.demo.plot import draw
    check_demo(settings, store)
    _make_directory(out)
    console.print(_describe_plan(settings), soft_wrap=True)
    with show_progress(console, settings) as progress, ending_in_good_order():
        report = anyio.run(partial(run_demo, settings, store=store, watch=progress.take))
    picture, numbers = out / "demo.png", out / "result.json"
    draw(report, picture)
    numbers.write_text(_to_json(report) + "\n", encoding="utf-8")
    console.print(make_table(report))
    for outage in report.outages:
        console.print(summarise(outage, settings), soft_wrap=True)
    if report.is_good:
        console.print(describe_verdict(report), soft_wrap=True)
    console.print(f"Took {report.seconds:.0f} s. See {picture} and {numbers}.", soft_wrap=True)
    return report


def _describe_plan(settings: DemoSettings) -> str:
    from aiodiloco.demo.corpus import find_corpus

    corpus = find_corpus()
    accident = (
        ""
        if settings.victim is None
        else f"\nReplica {settings.victim} will be killed halfway, on purpose; --no-kill leaves that out."
    )
    return (
        f"DiLoCo with {format_count(settings.replicas, 'replica')}, meeting every "
        f"{format_count(settings.sync_every, 'step')}, next to one alone: {settings.steps} steps each.\n"
        f"Text: the source of Python's standard library, {len(corpus.train)} files to train on, "
        f"{len(corpus.held_out)} held out.{accident}"
    )


def _make_directory(path: Path) -> None:
    """Make sure now, and not after the training, that results can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise typer.BadParameter(
            f"{path} cannot be made: {exc.strerror}; name another directory", param_hint="--out"
        ) from exc
    if not os.access(path, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written to; name another directory", param_hint="--out")


def _to_json(report: DemoReport) -> str:
    return json.dumps(report.to_dict(), indent=2)


def _fail(message: str) -> NoReturn:
    typer.echo(f"aiodiloco: {message}", err=True)
    raise typer.Exit(1)
