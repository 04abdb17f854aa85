"""How pictures of training look."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from aiodiloco.demo.chronicle import Outage, RoundSeen
    from aiodiloco.demo.report import Curve

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "draw_losses", "draw_participation", "picture", "shade_outages"]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart also by the colour-blind (Okabe and Ito)
GREY = "#A6A6A6"
_INK, _FAINT, _LIGHT = "#262626", "#666666", "#E6E6E6"
_RED, _SHADE = "#B2182B", "#FBE9E7"
_MOST_NAMED = 8  # rows of replicas that are told apart by their labels

_STYLE: dict[Any, Any] = {  # matplotlib types the names as a literal of hundreds
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "grid.color": _LIGHT,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.edgecolor": "white",
    "legend.framealpha": 1,
}


@contextlib.contextmanager
def picture(path: str | os.PathLike[str], *, inches: tuple[float, float], footnote: str) -> Iterator[Figure]:
    """Yield an empty figure to draw into; then write it to `path` as a PNG, without a display."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.08))
        FigureCanvasAgg(figure)
        yield figure
        figure.supxlabel(footnote, fontsize=8.5, color=_FAINT)
        figure.savefig(path, dpi=160)


def draw_losses(axes: Axes, curves: Sequence[tuple[str, Curve, str]]) -> None:
    """Draw held-out losses by inner step: for each curve its name, its points, its colour. The legend has the ends."""
    for name, curve, color in curves:
        steps, losses = zip(*curve, strict=True)
        label = f"{name}: {losses[-1]:.3f}"
        axes.plot(steps, losses, color=color, marker="o", markersize=4, linewidth=2, clip_on=False, label=label)
    axes.legend(labelcolor="linecolor", prop={"weight": "bold", "size": 10.5})
    axes.set_title("Loss on held-out text, nats per byte")
    axes.set_xlabel("inner steps of each replica")
    axes.set_xlim(0, max(curve[-1][0] for _, curve, _ in curves))
    axes.grid(axis="y", linewidth=0.8)


def shade_outages(axes: Axes, participation: Sequence[RoundSeen]) -> None:
    """Shade the rounds, by inner step, that were made without all replicas."""
    for first, last, absent in _spans(participation):
        if absent:
            axes.axvspan(first, last, color=_SHADE, linewidth=0, zorder=-1)


def draw_participation(
    axes: Axes, participation: Sequence[RoundSeen], outages: Sequence[Outage], replicas: int
) -> None:
    """Draw a row for each replica, by inner step: filled where it was in the rounds, a cross where it was lost."""
    for rank in range(replicas):
        present = [(first, last - first) for first, last, absent in _spans(participation) if rank not in absent]
        axes.broken_barh(present, (rank - 0.36, 0.72), facecolors=BLUE)
    for outage in outages:
        axes.plot(outage.step, outage.rank, marker="x", color=_RED, markersize=7, markeredgewidth=2.2, clip_on=False)
    shade_outages(axes, participation)
    axes.set_ylim(replicas - 0.4, -0.6)  # rank 0 at the top
    axes.set_yticks(range(replicas) if replicas <= _MOST_NAMED else [0, replicas - 1])
    axes.set_ylabel("replica")
    axes.set_title("Who was in the rounds" + (" (×: killed)" if outages else ""))
    axes.set_xlabel("inner steps of each replica")
    axes.tick_params(axis="y", length=0)


def _spans(participation: Sequence[RoundSeen]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return (first inner step, last inner step, who was absent) of every round."""
    ends = [0, *(seen.step for seen in participation)]
    return [(first, seen.step, seen.absent) for first, seen in zip(ends, participation, strict=False)]
