"""All commands in one place."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from aiodiloco.cli.demo import demo
from aiodiloco.cli.doctor import doctor
from aiodiloco.cli.launch import launch
from aiodiloco.cli.modal_emulator import modal_emulator
from aiodiloco.cli.runs import attach, cancel, logs, ps, reap, status, wait

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for command in (demo, launch, ps, status, attach, wait, cancel, reap, logs, doctor, modal_emulator):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aiodiloco {version('aiodiloco')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train one model on many replicas that meet only in an object store."""
