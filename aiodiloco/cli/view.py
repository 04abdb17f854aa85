"""A run as people see it: a table that follows its events on a terminal, a line for each that matters elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from aiodiloco.records import ReplicaStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiodiloco.events import Event
    from aiodiloco.run import RunResult

__all__ = ["RunView", "describe", "following", "new_console", "show_result"]

_WIDE = 200
_MANY = 32  # ranks that fit on a screen


@dataclasses.dataclass
class _Rank:
    incarnation: int = 0
    state: str = "starting"
    step: int = 0
    round: int = 0
    loss: float = math.nan
    tokens_per_s: float = 0.0
    num_included: int = 0


class RunView:
    """What the events of a run say, by rank."""

    def __init__(self, run_id: str, n_replicas: int) -> None:
        self._run_id = run_id
        self._ranks = [_Rank() for _ in range(n_replicas)]

    def take(self, event: Event) -> None:
        """Bring the view up to date."""
        rank = self._rank_of(event)
        if rank is None:
            return
        data = event.data
        match event.kind:
            case "joined" | "restored" | "left":
                rank.state = {"joined": "training", "restored": "came back", "left": "left"}[event.kind]
                rank.state = "failed" if event.kind == "left" and data.get("error") else rank.state
            case "step":
                rank.state = "training"
                rank.step = int(_number(data.get("step")))
                rank.loss = _number(data.get("loss"))
                rank.tokens_per_s = _number(data.get("tokens_per_s"))
            case "round":
                rank.round = int(_number(data.get("round"))) + 1
                rank.num_included += bool(data.get("included", True))

    def _rank_of(self, event: Event) -> _Rank | None:
        number, _, incarnation = event.writer.partition("-")
        if not number.isdecimal() or not incarnation.isdecimal() or int(number) >= len(self._ranks):
            return None
        rank = self._ranks[int(number)]
        if int(incarnation) < rank.incarnation:
            return None  # an old process of the rank; its events may come late
        rank.incarnation = int(incarnation)
        return rank

    def table(self) -> Table:
        """Return the present state; of very many ranks, those that are furthest behind."""
        table = Table(title=f"{self._run_id}: {len(self._ranks)} replicas", title_justify="left")
        for name in ("rank", "state", "step", "round", "in rounds", "loss", "tokens/s", "restarts"):
            table.add_column(name, justify="left" if name == "state" else "right")
        order = sorted(range(len(self._ranks)), key=lambda r: (self._ranks[r].step, r))
        shown = sorted(order[:_MANY])
        for number in shown:
            rank = self._ranks[number]
            table.add_row(
                str(number), rank.state, str(rank.step), str(rank.round), str(rank.num_included),
                "" if math.isnan(rank.loss) else f"{rank.loss:.3f}", f"{rank.tokens_per_s:,.0f}", str(rank.incarnation),
            )  # fmt: skip
        if len(order) > len(shown):
            table.caption = f"and {len(order) - len(shown)} more, which are further"
        return table


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def describe(event: Event) -> str | None:
    """Return a line for an event that people want to know of; None for the many others."""
    make = _LINES.get(event.kind)
    who = event.writer if event.writer.startswith("driver") else f"rank {event.writer.partition('-')[0]}"
    return make(who, event) if make is not None else None


def _round(_who: str, event: Event) -> str | None:
    data = event.data
    if not event.writer.startswith("0-"):
        return None  # one line for all ranks
    members, seconds = data.get("num_members"), _number(data.get("sync_s"))
    return f"round {data.get('round')} at step {data.get('step')}: {members} replicas, {seconds:.2f} s"


def _log(who: str, event: Event) -> str | None:
    level = event.data.get("level")
    return f"{who} {level}: {event.data.get('message')}" if level in ("WARNING", "ERROR", "CRITICAL") else None


def _left(who: str, event: Event) -> str:
    error = event.data.get("error")
    return f"{who} left: {error}" if error else f"{who} left"


_LINES: dict[str, Callable[[str, Event], str | None]] = {
    "joined": lambda who, _: f"{who} joined",
    "left": _left,
    "restored": lambda who, event: f"{who} came back at round {event.data.get('round')}, step {event.data.get('step')}",
    "respawned": lambda _, event: f"rank {event.data.get('rank')} is started again: {event.data.get('incarnation')}",
    "taken_over": lambda who, _: f"{who} took the run over",
    "stopping": lambda who, event: f"{who} ends the run: {event.data.get('reason')}",
    "run_ended": lambda who, event: f"{who}: {event.data.get('outcome')}, {event.data.get('reason')}",
    "round": _round,
    "log": _log,
}


@contextlib.contextmanager
def following(console: Console, view: RunView) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows each event it is called with."""
    if not console.is_terminal:

        def print_line(event: Event) -> None:
            if (line := describe(event)) is not None:
                console.print(line, soft_wrap=True, markup=False)

        yield print_line
        return
    with Live(view.table(), console=console, refresh_per_second=4, get_renderable=view.table) as live:

        def show(event: Event) -> None:
            view.take(event)
            if event.kind != "round" and (line := describe(event)) is not None:
                live.console.print(line, markup=False)

        yield show


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise an exception that passes event loops, where rich would raise SystemExit."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def new_console(*, stderr: bool = False) -> Console:
    """Return a console; wide where nobody sees its edge, so that nothing is cut off in files and pipes."""
    console = _Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else _Console(stderr=stderr, highlight=False, width=_WIDE)


def show_result(result: RunResult) -> None:
    """Print how every rank ended, and the traceback of the first that failed."""
    console = new_console()
    console.print(_result_table(result))
    failed = next((row for row in result.rows if row.status is ReplicaStatus.failed and row.traceback), None)
    if failed is not None and failed.traceback is not None:
        console.print(f"traceback of rank {failed.rank}:\n{failed.traceback.rstrip()}", markup=False, soft_wrap=True)


def _result_table(result: RunResult) -> Table:
    table = Table(title=f"{result.run_id} {result.outcome}: {result.reason}", title_justify="left")
    for name in ("rank", "status", "exit code", "result or error"):
        table.add_column(name, justify="right" if name in ("rank", "exit code") else "left", overflow="fold")
    for row in result.rows:
        code = "" if row.exit_code is None else str(row.exit_code)
        table.add_row(str(row.rank), row.status.value, code, escape(row.error or _short(row.result)))
    seconds = f"{result.elapsed_s:.0f} s, {result.spent_gpu_s:.0f} replica seconds"
    table.caption = f"{seconds}, {len(result.attempts)} processes"
    return table


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
