"""The demo's picture: what DiLoCo learnt, who was there when, and what was sent for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiodiloco.demo.figures import BLUE, GREY, ORANGE, draw_losses, draw_participation, picture, shade_outages
from aiodiloco.demo.units import format_bytes

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes

    from aiodiloco.demo.report import DemoReport

__all__ = ["draw"]


def draw(report: DemoReport, path: str | os.PathLike[str]) -> None:
    """Write the picture of `report` as a PNG to `path`."""
    replicas = report.settings.replicas
    with picture(path, inches=(10, 5.4), footnote=_footnote(report)) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(3, 2), height_ratios=(5, 1.3))
        losses = figure.add_subplot(grid[0, 0])
        curves = [("one replica alone", report.alone, ORANGE), (f"DiLoCo, {replicas} replicas", report.diloco, BLUE)]
        draw_losses(losses, curves)
        losses.set_xlabel("")
        losses.tick_params(labelbottom=False)
        shade_outages(losses, report.participation)
        presence = figure.add_subplot(grid[1, 0], sharex=losses)
        draw_participation(presence, report.participation, report.outages, replicas)
        _draw_bytes(figure.add_subplot(grid[:, 1]), report)


def _draw_bytes(axes: Axes, report: DemoReport) -> None:
    bars = {"DiLoCo": report.bytes_exchanged, "data parallel*": report.data_parallel_bytes}
    drawn = axes.barh(list(bars), list(bars.values()), color=[BLUE, GREY], height=0.5)
    labels = [format_bytes(value) for value in bars.values()]
    if report.times_less > 1:
        labels[0] += f": {report.times_less:.0f} times less"
    axes.bar_label(drawn, labels, padding=5, fontweight="bold")
    axes.set_title("Sent + received by each replica")
    axes.margins(x=0.32, y=0.2)
    axes.xaxis.set_ticks([])  # the bars say their numbers
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)


def _footnote(report: DemoReport) -> str:
    settings, millions = report.settings, report.num_parameters / 1e6
    return (
        f"{millions:.2f}M-parameter byte-level transformer, trained on the source of Python's standard library; "
        f"DiLoCo sends {settings.wire} every {settings.sync_every} steps.\n"
        "* computed: fp32 gradients in a ring all-reduce at every step, "
        "2 directions · 2 (N-1)/N · 4 bytes · parameters · steps."
    )
