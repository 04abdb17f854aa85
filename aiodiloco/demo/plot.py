"""The demo's picture: what DiLoCo learnt, and what it sent for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from aiodiloco.demo.units import format_bytes

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes

    from aiodiloco.demo.report import DemoReport

__all__ = ["draw"]

_BLUE, _ORANGE = "#0072B2", "#D55E00"  # told apart also by the colour-blind (Okabe and Ito)
_INK, _FAINT, _GREY, _LIGHT = "#262626", "#666666", "#A6A6A6", "#E6E6E6"

_STYLE: dict[Any, Any] = {  # matplotlib types the names as a literal of hundreds
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def draw(report: DemoReport, path: str | os.PathLike[str]) -> None:
    """Write the picture of `report` as a PNG to `path`."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.08))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_losses(left, report)
        _draw_bytes(right, report)
        figure.supxlabel(_footnote(report), fontsize=8.5, color=_FAINT)
        figure.savefig(path, dpi=160)


def _draw_losses(axes: Axes, report: DemoReport) -> None:
    together = f"DiLoCo, {report.settings.replicas} replicas"
    for name, curve, color in (("one replica alone", report.alone, _ORANGE), (together, report.diloco, _BLUE)):
        steps, losses = zip(*curve, strict=True)
        label = f"{name}: {losses[-1]:.3f}"
        axes.plot(steps, losses, color=color, marker="o", markersize=4, linewidth=2, clip_on=False, label=label)
    axes.legend(frameon=False, labelcolor="linecolor", prop={"weight": "bold", "size": 10.5})
    axes.set_title("Loss on held-out text, nats per byte")
    axes.set_xlabel("inner steps of each replica")
    axes.set_xlim(0, report.settings.steps)
    axes.grid(axis="y", color=_LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_bytes(axes: Axes, report: DemoReport) -> None:
    bars = {"DiLoCo": report.bytes_exchanged, "data parallel*": report.data_parallel_bytes}
    drawn = axes.barh(list(bars), list(bars.values()), color=[_BLUE, _GREY], height=0.5)
    labels = [format_bytes(value) for value in bars.values()]
    if report.times_less > 1:
        labels[0] += f": {report.times_less:.0f} times less"
    axes.bar_label(drawn, labels, padding=5, fontweight="bold")
    axes.set_title("Sent and received by each replica")
    axes.margins(x=0.32, y=0.2)
    axes.xaxis.set_ticks([])  # the bars say their numbers
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)


def _footnote(report: DemoReport) -> str:
    settings = report.settings
    millions = report.num_parameters / 1e6
    return (
        f"{millions:.2f}M-parameter byte-level transformer, trained on the source of Python's standard library; "
        f"DiLoCo sends {settings.wire} every {settings.sync_every} steps.\n"
        "* computed: fp32 gradients in a ring all-reduce at every step, "
        "2 directions · 2 (N-1)/N · 4 bytes · parameters · steps."
    )
