"""The picture of a run of the all-reduce benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["draw"]

_COLORS = {"aiodiloco": "#2a6f97", "gloo": "#b8b8b8", "bare": "#8a5a44"}


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write bars of the time each case took over the limit of its links, with its seconds beside them."""
    shaped = [record for record in records if record.get("over_limit")]
    if not shaped:
        return
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(shaped)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(shaped))
    ratios = [record["over_limit"] for record in shaped]
    axes.barh(places, ratios, color=[_COLORS[record["backend"]] for record in shaped], height=0.7)
    for place, record in zip(places, shaped, strict=True):
        axes.text(record["over_limit"] + 0.01, place, f"{record['seconds']:.2f} s", va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [record["case"] for record in shaped], fontsize=8)
    axes.set_xlim(0, max(ratios) * 1.12)
    axes.set_xlabel("time over 2M(N−1)/N / bandwidth of a link")
    axes.invert_yaxis()
    figure.savefig(path, dpi=150)
