"""`aiodiloco ps, status, attach, wait, cancel, reap, logs`: runs that were launched before, by anyone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.table import Table

from aiodiloco.cli.backends import BACKENDS, executor_of_run, executor_to_manage
from aiodiloco.cli.exits import TIMED_OUT, exit_with, fail, run_command
from aiodiloco.cli.launch import follow_to_its_end
from aiodiloco.cli.options import AsJson, ModalFunction, RunId, Store  # noqa: TC001 - typer reads them at run time
from aiodiloco.cli.view import new_console, show_result
from aiodiloco.run import attach as attach_to_run
from aiodiloco.run import reap as reap_runs
from aiodiloco.run.listing import list_runs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodiloco.run import Run, RunResult, RunStatus
    from aiodiloco.run.listing import RunSummary

__all__ = ["attach", "cancel", "logs", "ps", "reap", "status", "wait"]


def ps(
    *,
    store: Store,
    alive: Annotated[bool, typer.Option("--alive", help="Watch for a beat which runs have a driver.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs of a store and where each stands."""

    async def work() -> None:
        runs = await list_runs(store, look_for_drivers=alive)
        if as_json:
            typer.echo(json.dumps([run.to_dict() for run in runs], indent=2))
        elif runs:
            new_console().print(_runs_table(runs))
        else:
            typer.echo(f"no runs under {store}", err=True)

    run_command(work)


def status(run_id: RunId, *, store: Store, modal_function: ModalFunction = None, as_json: AsJson = False) -> None:
    """Show where a run stands: its replicas, by their backend, and its driver."""

    async def show(run: Run) -> None:
        found = await run.status()
        if as_json:
            typer.echo(json.dumps(_status_dict(found), indent=2))
        elif found.result is not None:
            show_result(found.result)
        else:
            new_console().print(_status_table(found))

    _with_run(store, run_id, modal_function, show)


def attach(run_id: RunId, *, store: Store, modal_function: ModalFunction = None, as_json: AsJson = False) -> None:
    """Follow a run to its end, and drive it should its driver be gone. Exits as the run ends.

    Ctrl-C leaves the run as it is; it goes on if somebody drives it, or for as
    long as its lease lasts.
    """

    async def follow(run: Run) -> None:
        exit_with(await follow_to_its_end(run, as_json=as_json))

    _with_run(store, run_id, modal_function, follow, interrupted="interrupted; the run was left as it is")


def wait(
    run_id: RunId,
    *,
    store: Store,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most; then exit with 124.", min=0)] = None,
    modal_function: ModalFunction = None,
    as_json: AsJson = False,
) -> None:
    """Wait for the end of a run, silently, and exit as it ends; drives it should its driver be gone."""

    async def await_end(run: Run) -> None:
        with anyio.move_on_after(timeout):
            exit_with(_print_result(await run.wait_for_result(), as_json=as_json))
        fail(f"run {run_id} has not ended after {timeout:g} s", code=TIMED_OUT)

    _with_run(store, run_id, modal_function, await_end, interrupted="interrupted; the run was left as it is")


def cancel(run_id: RunId, *, store: Store, modal_function: ModalFunction = None, as_json: AsJson = False) -> None:
    """End a run and every replica of it, whoever drives it; waits until that is confirmed."""

    async def end(run: Run) -> None:
        await run.cancel()
        _print_result(await run.wait_for_result(), as_json=as_json)

    _with_run(store, run_id, modal_function, end, interrupted="interrupted; the order to end the run stands")


def reap(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only this one.", show_default="all")] = None,
    *,
    store: Store,
    backend: Annotated[str, typer.Option(help="Whose runs: local or modal.")] = "local",
    modal_function: ModalFunction = None,
    as_json: AsJson = False,
) -> None:
    """End every run that has no driver any more, with all replicas that it left behind.

    Each is watched for as long as its lease lasts: one whose driver lives is
    never touched.
    """

    async def work() -> None:
        async with executor_to_manage(backend, modal_function=modal_function) as executor:
            ended = await reap_runs(store, executor, run_id=run_id)
        if as_json:
            typer.echo(json.dumps([result.to_dict() for result in ended], indent=2))
        elif not ended:
            typer.echo(f"no {backend} run under {store} lacks a driver", err=True)
        for result in () if as_json else ended:
            show_result(result)

    if backend not in BACKENDS:
        raise typer.BadParameter(f"{backend!r} is not {' or '.join(BACKENDS)}", param_hint="--backend")
    run_command(work)


def logs(
    run_id: RunId,
    *,
    store: Store,
    rank: Annotated[int, typer.Option(help="Which replica.", min=0)] = 0,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the latest lines.", min=0)] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the replica has ended.")] = False,
    modal_function: ModalFunction = None,
) -> None:
    """Print what a replica's latest process has written to its output."""

    async def show(run: Run) -> None:
        handle = next((h for h in run.handles if h.rank == rank), None)
        if handle is None:
            fail(f"run {run_id} has no process of rank {rank}; it has {run.n_replicas} ranks")
        async for line in run.executor.stream_logs(handle, n_lines=lines, follow=follow):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    _with_run(store, run_id, modal_function, show)


def _with_run(
    store: str,
    run_id: str,
    modal_function: str | None,
    use: Callable[[Run], Awaitable[None]],
    *,
    interrupted: str = "interrupted",
) -> None:
    async def work() -> None:
        async with await executor_of_run(store, run_id, modal_function=modal_function) as executor:
            await use(await attach_to_run(run_id, store=store, executor=executor))

    run_command(work, interrupted=interrupted)


def _print_result(result: RunResult, *, as_json: bool) -> RunResult:
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        show_result(result)
    return result


def _runs_table(runs: list[RunSummary]) -> Table:
    table = Table(box=None)
    for name in ("run", "state", "backend", "replicas", "gpu", "elapsed", "replica seconds", "entrypoint"):
        is_number = name in ("replicas", "elapsed", "replica seconds")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=name in ("run", "state"))
    for run in runs:
        row = run.to_dict()
        table.add_row(
            run.run_id, run.state, row["backend"] or "", str(row["n_replicas"] or ""), row["gpu"] or "",
            f"{row['elapsed_s']:.0f} s", f"{row['spent_gpu_s']:.0f}", row["entrypoint"] or "",
        )  # fmt: skip
    return table


def _status_table(status: RunStatus) -> Table:
    driver = f"driver {status.generation}: {status.driver}" if status.driver else "never driven"
    table = Table(title=f"{status.run_id}: {driver}, {status.elapsed_s:.0f} s", title_justify="left")
    for name in ("rank", "status", "call", "error"):
        table.add_column(name, justify="right" if name == "rank" else "left", overflow="fold")
    for row in status.replicas:
        table.add_row(str(row.rank), row.status.value, row.call_id or "", row.error or "")
    return table


def _status_dict(status: RunStatus) -> dict[str, object]:
    return {
        "run_id": status.run_id,
        "result": None if status.result is None else status.result.to_dict(),
        "replicas": [row.to_dict() for row in status.replicas],
        "generation": status.generation,
        "driver": status.driver,
        "elapsed_s": status.elapsed_s,
        "spent_gpu_s": status.spent_gpu_s,
    }
