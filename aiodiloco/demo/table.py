"""The demo's numbers as a table, and what they say as a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from aiodiloco.demo.units import format_bytes

if TYPE_CHECKING:
    from aiodiloco.demo.report import DemoReport

__all__ = ["describe_verdict", "make_table"]

_CAPTION = (
    "* computed, not run: fp32 gradients in a ring all-reduce at every step,\n"
    "  2 directions x 2 (N-1)/N x 4 bytes x parameters x steps"
)


def make_table(report: DemoReport) -> Table:
    """Return DiLoCo, the replica alone, and what data parallel would have exchanged, side by side; fits 80 columns."""
    replicas, steps, tokens = report.settings.replicas, report.settings.steps, report.tokens_per_replica
    table = Table(box=box.SIMPLE_HEAD, caption=_CAPTION, caption_justify="left")
    table.add_column("")
    for name in ("DiLoCo", "one alone", "data parallel*"):
        table.add_column(name, justify="right")
    table.add_row("held-out loss, nats per byte", f"{report.diloco_loss:.4f}", f"{report.alone_loss:.4f}", "")
    table.add_row("replicas", str(replicas), "1", str(replicas))
    table.add_row("tokens trained on, in all", f"{report.tokens_together:,}", f"{tokens:,}", f"{replicas * tokens:,}")
    table.add_row("synchronisations", str(report.rounds), "0", str(steps))
    exchanged = [report.bytes_exchanged, 0, report.data_parallel_bytes]
    table.add_row("sent and received by a replica", *map(format_bytes, exchanged))
    return table


def describe_verdict(report: DemoReport) -> str:
    """Return in a sentence whether DiLoCo beat the replica alone, and what to do if not."""
    diloco, alone = report.diloco_loss, report.alone_loss
    if not report.replicas_agree:
        return "the replicas ended with different weights, which must never happen: please report this"
    if not report.diloco_wins:
        return (
            f"DiLoCo did not beat the lone replica: held-out loss {diloco:.4f} against {alone:.4f}; give it more "
            "--steps, or fewer rounds with a larger --sync-every"
        )
    won = f"DiLoCo beat the lone replica by {1 - diloco / alone:.1%} of held-out loss"
    if report.settings.replicas == 1:
        return f"{won}."
    return f"{won}; all {report.settings.replicas} replicas ended with the same weights, bit for bit."
