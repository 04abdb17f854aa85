"""`aiodiloco launch`: start a run and stay with it."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from aiodiloco.cli.backends import executor_to_launch
from aiodiloco.cli.exits import exit_with, run_command
from aiodiloco.cli.options import AsJson  # noqa: TC001 - typer reads it at run time
from aiodiloco.cli.spec import LaunchSpec, parse_arguments, parse_policy, read_spec
from aiodiloco.cli.view import RunView, following, new_console, show_result
from aiodiloco.errors import StoreError
from aiodiloco.records import new_run_id
from aiodiloco.run import launch as launch_run

if TYPE_CHECKING:
    from rich.console import Console

    from aiodiloco.run import Run, RunResult

__all__ = ["follow_to_its_end", "launch"]

_LAST_EVENTS_S = 5.0


def launch(
    target: Annotated[
        str | None,
        typer.Argument(metavar="ENTRYPOINT|FILE.toml", help="What each replica runs: module:function, or a file."),
    ] = None,
    *,
    replicas: Annotated[int | None, typer.Option("--replicas", "-n", help="How many replicas.")] = None,
    store: Annotated[str | None, typer.Option(envvar="AIODILOCO_STORE", help="Where runs are kept: a URI.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which the run is ended.")] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the entrypoint. Repeatable.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="fail-fast, wait-all, quorum:K, respawn or respawn:RESTARTS.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Where replicas run: local or modal.")] = None,
    modal_function: Annotated[
        str | None, typer.Option(metavar="APP/FUNCTION", help="A deployed Modal function, instead of an entrypoint.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="The device of each replica, in the backend's words.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; of one that exists: attach to it.")] = None,
    lease: Annotated[
        str | None, typer.Option(help="Seconds after which replicas end without their driver, or none.")
    ] = None,
    max_gpu_seconds: Annotated[float | None, typer.Option(help="Budget: end the run when it is spent.")] = None,
    replica_timeout: Annotated[float | None, typer.Option(help="Seconds each replica may run.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave the run to itself; needs --lease none.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, say what would run, start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run, show how it goes, and exit as it ends.

    Ctrl-C ends the run and every replica. Options win over the file, whose
    fields have their names: entrypoint, replicas, store, timeout, policy, …
    """

    async def work() -> None:
        spec = read_spec(
            target,
            {
                "replicas": replicas, "store": store, "timeout": timeout, "args": parse_arguments(arg or ()),
                "policy": None if policy is None else parse_policy(policy), "backend": backend,
                "modal_function": modal_function, "gpu": gpu, "run_id": run_id, "lease": _lease(lease),
                "max_gpu_seconds": max_gpu_seconds, "replica_timeout": replica_timeout,
            },
        )  # fmt: skip
        spec.check()
        await _launch(spec, drove, detach=detach, dry_run=dry_run, as_json=as_json)

    drove: list[bool] = []

    def interrupted() -> str:
        return "interrupted; the replicas were ended" if drove != [False] else "interrupted; the run was left as it is"

    run_command(work, interrupted=interrupted)


def _lease(text: str | None) -> float | str | None:
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


async def _launch(spec: LaunchSpec, drove: list[bool], *, detach: bool, dry_run: bool, as_json: bool) -> None:
    assert spec.store is not None
    assert spec.timeout is not None
    lease_s = spec.lease_s
    if detach and lease_s is not None:
        raise ValueError("--detach needs --lease none: with a lease, replicas end when this process has")
    executor, entrypoint = executor_to_launch(
        spec.backend, spec.entrypoint, modal_function=spec.modal_function, outlives_driver=lease_s is None
    )
    async with executor:
        if dry_run:
            await executor.plan_replicas(
                spec.replicas, entrypoint, spec.args, gpu=spec.gpu, timeout=spec.replica_timeout,
                run_id=spec.run_id or new_run_id(), offered={"rendezvous_uri": "", "world_size": 1, "incarnation": 0},
            )  # fmt: skip
            typer.echo(json.dumps(spec.to_dict(), indent=2))
            return
        start = partial(
            launch_run, executor, entrypoint, spec.replicas, store=spec.store, timeout=spec.timeout, policy=spec.policy,
            args=spec.args, gpu=spec.gpu, run_id=spec.run_id, lease=lease_s, max_gpu_seconds=spec.max_gpu_seconds,
            replica_timeout=spec.replica_timeout,
        )  # fmt: skip
        async with start() as run:
            try:
                if detach:
                    run.detach()
                    result = None
                else:
                    result = await follow_to_its_end(run, as_json=as_json)
            except BaseException:
                drove.append(run.is_driving)
                raise
    if result is not None:
        exit_with(result)
    typer.echo(json.dumps({"run_id": run.run_id, "uri": run.uri}) if as_json else run.run_id)


async def follow_to_its_end(run: Run, *, as_json: bool) -> RunResult:
    """Show the run's events until it has ended, and what came of it. To see nothing is no reason to end it."""
    console = new_console(stderr=as_json)
    ends: list[RunResult | Exception] = []
    async with anyio.create_task_group() as tg:
        shown = anyio.Event()
        tg.start_soon(_show_events, run, console, shown)
        try:
            ends.append(await run.wait_for_result())  # drives a run that has no driver, where it was attached to
        except Exception as exc:  # noqa: BLE001 - raised below, and not in a group
            ends.append(exc)
        with anyio.move_on_after(_LAST_EVENTS_S):
            await shown.wait()
        tg.cancel_scope.cancel()
    if isinstance(ends[0], Exception):
        raise ends[0]
    if as_json:
        typer.echo(json.dumps(ends[0].to_dict(), indent=2))
    else:
        show_result(ends[0])
    return ends[0]


async def _show_events(run: Run, console: Console, shown: anyio.Event) -> None:
    with contextlib.suppress(OSError):  # nobody reads, or the disk is full
        console.print(f"{run.run_id}: {run.n_replicas} replicas, {run.uri}", soft_wrap=True, markup=False)
        with following(console, RunView(run.run_id, run.n_replicas)) as show:
            try:
                async for event in run.events():
                    show(event)
            except StoreError as exc:
                console.print(f"cannot follow the events: {exc}", soft_wrap=True, markup=False)
    shown.set()
