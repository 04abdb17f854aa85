"""How far every replica is: a bar for each on a terminal, ten plain lines in all elsewhere."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING, Self, TypeAlias

from rich.progress import BarColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from aiodiloco.demo.settings import DemoSettings
    from aiodiloco.events import Event

__all__ = ["Bars", "Lines", "Row", "show_progress"]

_NUM_LINES = 10


@dataclasses.dataclass
class Row:
    """Where one replica is.

    Attributes:
        name: What to call it.
        step: Inner steps taken.
        round: Outer steps taken; None for one that takes none.
        loss: Of the latest inner step; not a number before the first.
        tokens_per_s: Since it joined, waiting for others included.
    """

    name: str
    step: int = 0
    round: int | None = None
    loss: float = math.nan
    tokens_per_s: float = 0.0
    _joined: float = math.inf

    def take(self, event: Event) -> None:
        """Bring the row up to date with an event of its replica."""
        if event.kind == "joined":
            self._joined = event.time
        elif event.kind == "round":
            self.round = int(_number(event, "round")) + 1
        elif "tokens" in event.data:  # an inner step; evaluations have none
            self.step, self.loss = int(_number(event, "step")), _number(event, "loss")
            self.tokens_per_s = _number(event, "tokens") / max(event.time - self._joined, 1e-3)


Rows: TypeAlias = dict[tuple[str, str], Row]
"""(run, writer of events) -> its row."""


def show_progress(console: Console, settings: DemoSettings) -> Bars | Lines:
    """Return what shows progress on `console`: a context manager whose `take` is a `Watch` for `run_demo`."""
    rows: Rows = {("diloco", f"{rank}-0"): Row(f"replica {rank}", round=0) for rank in range(settings.replicas)}
    rows["alone", "0-0"] = Row("alone")
    return Bars(console, rows, settings.steps) if console.is_terminal else Lines(console, rows, settings.steps)


class Bars:
    """A bar for every replica, redrawn in place."""

    def __init__(self, console: Console, rows: Rows, steps: int) -> None:
        self._rows = rows
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}", justify="right"),
            TextColumn("{task.fields[detail]}"),
            console=console,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {
            row.name: self._progress.add_task(row.name, total=steps, detail=_detail(row)) for row in rows.values()
        }

    def take(self, run: str, event: Event) -> None:
        """Show what an event changes."""
        if (row := self._rows.get((run, event.writer))) is not None:
            row.take(event)
            self._progress.update(self._bars[row.name], completed=row.step, detail=_detail(row))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._progress.stop()


class Lines:
    """A line whenever all replicas have come another tenth of the way."""

    def __init__(self, console: Console, rows: Rows, steps: int) -> None:
        self._console = console
        self._rows = rows
        self._steps = steps
        self._next_line = 1

    def take(self, run: str, event: Event) -> None:
        """Print a line if an event makes it due."""
        if (row := self._rows.get((run, event.writer))) is None:
            return
        row.take(event)
        if row.step * _NUM_LINES >= self._next_line * self._steps:
            step = min(row.step for row in self._rows.values())
            if step * _NUM_LINES >= self._next_line * self._steps:
                self._next_line = step * _NUM_LINES // self._steps + 1
                self._console.print(self._line(step), soft_wrap=True, highlight=False)

    def _line(self, step: int) -> str:
        *replicas, alone = self._rows.values()
        loss = statistics.fmean(row.loss for row in replicas)
        speed = sum(row.tokens_per_s for row in self._rows.values())
        rounds = min(row.round or 0 for row in replicas)
        return (
            f"step {step}/{self._steps}  round {rounds}  loss {loss:.3f} (mean of {len(replicas)}), "
            f"alone {alone.loss:.3f}  {speed / 1000:.1f}k tokens/s"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None


def _detail(row: Row) -> str:
    """Return loss, speed and round in columns, whatever of them there is."""
    if row.step == 0:
        return f"{'starting':<39}"
    sync = "" if row.round is None else f"round {row.round}"
    return f"loss {row.loss:.3f}  {row.tokens_per_s / 1000:5.1f}k tokens/s  {sync:<9}"


def _number(event: Event, name: str) -> float:
    return float(event.data[name])  # type: ignore[arg-type]  # a number, or its name where JSON has none: "nan"
