"""How far every replica is: a bar for each on a terminal, ten plain lines elsewhere; and what happens to them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING, Self, TypeAlias

from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn

from aiodiloco.demo.chronicle import Chronicle, rank_of
from aiodiloco.demo.story import tell

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress_bar import ProgressBar

    from aiodiloco.demo.settings import DemoSettings
    from aiodiloco.events import Event

__all__ = ["Bars", "Lines", "Row", "show_progress"]

_NUM_LINES = 10
_DETAIL_WIDTH = 39


@dataclasses.dataclass
class Row:
    """Where one replica is.

    Attributes:
        name: What to call it.
        step: Inner steps taken.
        round: Outer steps taken; None for one that takes none.
        loss: Of the latest inner step; not a number before the first.
        tokens_per_s: Since it joined, waiting for others included.
        trouble: Why it does not train, if it does not: what to show instead.
    """

    name: str
    step: int = 0
    round: int | None = None
    loss: float = math.nan
    tokens_per_s: float = 0.0
    trouble: str | None = None
    _joined: float = math.inf

    def take(self, event: Event) -> None:
        """Bring the row up to date with an event of its replica, or about it."""
        if event.kind == "joined":
            self._joined = event.time
        elif event.kind == "ended" and event.data["status"] == "failed":
            self.trouble = "killed" if event.data["preempted"] else "failed"
        elif event.kind == "respawned":
            self.trouble = f"starting again, incarnation {event.data['incarnation']}"
        elif event.kind == "round":
            self.round = int(_number(event, "round")) + 1
        elif "tokens" in event.data:  # an inner step; evaluations have none
            self.trouble = None
            self.step, self.loss = int(_number(event, "step")), _number(event, "loss")
            self.tokens_per_s = _number(event, "tokens") / max(event.time - self._joined, 1e-3)


Rows: TypeAlias = dict[tuple[str, int], Row]
"""(run, rank) -> its row."""


def show_progress(console: Console, settings: DemoSettings) -> Bars | Lines:
    """Return what shows progress on `console`: a context manager whose `take` is a `Watch` for `run_demo`."""
    rows: Rows = {("diloco", rank): Row(f"replica {rank}", round=0) for rank in range(settings.replicas)}
    rows["alone", 0] = Row("alone")
    return Bars(console, rows, settings) if console.is_terminal else Lines(console, rows, settings)


class _Story:
    """Prints what happened to replicas, in sentences, as it happens."""

    def __init__(self, console: Console, settings: DemoSettings) -> None:
        self._console = console
        self._settings = settings
        self._chronicle = Chronicle()

    def take(self, run: str, event: Event) -> None:
        if run == "diloco" and (outage := self._chronicle.take(event)) is not None:
            self._console.print(tell(outage, self._settings), soft_wrap=True, highlight=False, markup=False)


class Bars:
    """A bar for every replica, redrawn in place, below what happened."""

    def __init__(self, console: Console, rows: Rows, settings: DemoSettings) -> None:
        self._rows = rows
        self._story = _Story(console, settings)
        self._progress = Progress(
            TextColumn("{task.description}"),
            _Bar(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed}/{task.total}", justify="right"),
            TextColumn("{task.fields[detail]}"),
            console=console,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {
            row.name: self._progress.add_task(row.name, total=settings.steps, detail=_detail(row), trouble=None)
            for row in rows.values()
        }

    def take(self, run: str, event: Event) -> None:
        """Show what an event changes."""
        row = _row_of(self._rows, run, event)
        if row is not None:
            row.take(event)
            bar = self._bars[row.name]
            self._progress.update(bar, completed=row.step, detail=_detail(row), trouble=row.trouble)
        self._story.take(run, event)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._progress.stop()


class _Bar(BarColumn):
    """A bar that is red while its replica is away."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        if task.fields["trouble"] is not None:
            bar.complete_style = "red"
        return bar


class Lines:
    """A line whenever all replicas that train have come another tenth of the way."""

    def __init__(self, console: Console, rows: Rows, settings: DemoSettings) -> None:
        self._console = console
        self._rows = rows
        self._story = _Story(console, settings)
        self._steps = settings.steps
        self._next_line = 1

    def take(self, run: str, event: Event) -> None:
        """Print a line if an event makes it due."""
        if (row := _row_of(self._rows, run, event)) is not None:
            row.take(event)
        self._story.take(run, event)
        step = min((row.step for row in self._rows.values() if row.trouble is None), default=0)
        if step * _NUM_LINES >= self._next_line * self._steps:
            self._next_line = step * _NUM_LINES // self._steps + 1
            self._console.print(self._line(step), soft_wrap=True, highlight=False)

    def _line(self, step: int) -> str:
        *replicas, alone = self._rows.values()
        training = [row for row in replicas if row.trouble is None]
        loss = statistics.fmean(row.loss for row in training) if training else math.nan
        speed = sum(row.tokens_per_s for row in (*training, alone))
        rounds = min((row.round or 0 for row in training), default=0)
        return (
            f"step {step}/{self._steps}  round {rounds}  loss {loss:.3f} (mean of {len(training)}), "
            f"alone {alone.loss:.3f}  {speed / 1000:.1f}k tokens/s"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None


def _row_of(rows: Rows, run: str, event: Event) -> Row | None:
    rank = rank_of(event)
    return None if rank is None else rows.get((run, rank))


def _detail(row: Row) -> str:
    """Return loss, speed and round in columns, whatever of them there is."""
    if row.trouble is not None or row.step == 0:
        return f"{row.trouble or 'starting':<{_DETAIL_WIDTH}}"
    sync = "" if row.round is None else f"round {row.round}"
    return f"loss {row.loss:.3f}  {row.tokens_per_s / 1000:5.1f}k tokens/s  {sync:<9}"


def _number(event: Event, name: str) -> float:
    return float(event.data[name])  # type: ignore[arg-type]  # a number, or its name where JSON has none: "nan"
