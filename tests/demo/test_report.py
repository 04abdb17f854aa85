"""The demo's numbers: what data parallel would have sent, who won, and how that is said."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
from PIL import Image
from rich.console import Console

from aiodiloco import Event
from aiodiloco.demo.chronicle import Outage, RoundSeen
from aiodiloco.demo.figures import BLUE, ORANGE, draw_losses, draw_participation, picture, shade_outages
from aiodiloco.demo.plot import draw
from aiodiloco.demo.report import DemoReport, data_parallel_bytes, held_out_curve, steps_in_rounds
from aiodiloco.demo.settings import DemoSettings
from aiodiloco.demo.table import describe_verdict, make_table
from aiodiloco.demo.units import format_bytes, format_count

OUTAGE = Outage(
    rank=3,
    incarnation=0,
    error="killed by SIGKILL, and so on",
    step=47,
    in_round=3,
    is_respawned=True,
    restored_from=2,
    back_in=5,
    missed=(3, 4),
)
ROUNDS = [RoundSeen(20, ()), RoundSeen(40, ()), RoundSeen(60, (3,)), RoundSeen(80, (3,)), RoundSeen(100, ())]

REPORT = DemoReport(
    settings=DemoSettings(replicas=4, steps=100, sync_every=20),
    num_parameters=1000,
    diloco=[(20, 3.0), (100, 1.8)],
    alone=[(20, 3.1), (100, 2.0)],
    tokens_per_replica=51_200,
    tokens_together=184_320,
    rounds=5,
    bytes_sent=10_000,
    bytes_received=30_000,
    replicas_agree=True,
    participation=ROUNDS,
    outages=[OUTAGE],
    seconds=12.0,
)


def _lost(diloco_loss: float) -> DemoReport:
    return dataclasses.replace(REPORT, diloco=[(20, 3.0), (100, diloco_loss)])


def _as_text(report: DemoReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(make_table(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _bytes_of_a_ring(num_parameters: int, ranks: int) -> int:
    """Follow rank 0 through a ring all-reduce, chunk by chunk: every turn it sends one and receives one."""
    chunk = num_parameters * 4 // ranks
    turns = (ranks - 1) + (ranks - 1)  # reduce-scatter, then all-gather
    return turns * (chunk + chunk)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_data_parallel_bytes_are_those_of_a_ring(ranks):
    assert data_parallel_bytes(2400, steps=7, replicas=ranks) == 7 * _bytes_of_a_ring(2400, ranks)


def test_the_lower_held_out_loss_wins():
    assert REPORT.diloco_wins
    assert REPORT.is_good
    assert not _lost(2.0).diloco_wins
    assert not _lost(2.1).diloco_wins
    assert not _lost(math.nan).diloco_wins


def test_the_verdict_says_by_how_much_diloco_won():
    assert describe_verdict(REPORT).startswith("DiLoCo beat the lone replica by 10.0% of held-out loss; all 4 replicas")


def test_the_verdict_on_a_single_replica_says_nothing_of_agreement():
    report = dataclasses.replace(REPORT, settings=DemoSettings(replicas=1, steps=100))
    assert describe_verdict(report) == "DiLoCo beat the lone replica by 10.0% of held-out loss."


def test_the_verdict_on_a_lost_run_has_both_losses_and_a_remedy():
    verdict = describe_verdict(_lost(2.1))
    assert verdict.startswith("DiLoCo did not beat the lone replica: held-out loss 2.1000 against 2.0000")
    assert "--steps" in verdict


def test_replicas_that_disagree_spoil_the_run_whoever_won():
    report = dataclasses.replace(REPORT, replicas_agree=False)
    assert not report.is_good
    assert "ended with different weights" in describe_verdict(report)


def test_the_report_as_json_has_the_numbers_and_the_verdict():
    fields = json.loads(json.dumps(REPORT.to_dict()))
    assert fields["settings"]["replicas"] == 4
    assert fields["diloco"] == [[20, 3.0], [100, 1.8]]
    assert fields["diloco_wins"] is True
    assert fields["data_parallel_bytes"] == 2 * 2 * 3 * 1000 * 100
    assert fields["outages"][0]["missed"] == [3, 4]
    assert fields["participation"][2] == {"step": 60, "absent": [3]}


def test_the_table_has_losses_bytes_and_the_formula_in_80_columns():
    text = _as_text(REPORT, width=80)
    for cell in ("1.8000", "2.0000", "184,320", "204,800", "51,200", "40.0 kB", "1.20 MB", "2 (N-1)/N x 4 bytes"):
        assert cell in text
    assert "…" not in text


def test_the_curve_is_what_was_evaluated_and_the_end():
    events = [
        Event("step", "0-0", 0, 0.0, {"step": 20, "loss": 3.1}),
        Event("metrics", "0-0", 1, 0.0, {"step": 20, "held_out_loss": 3.0}),
        Event("metrics", "0-0", 2, 0.0, {"step": 40, "held_out_loss": "nan"}),
    ]
    (first, second, last) = held_out_curve(events, last=(100, 1.8))
    assert (first, last) == ((20, 3.0), (100, 1.8))
    assert second[0] == 40
    assert math.isnan(second[1])


def test_steps_of_those_who_were_away_count_for_nothing():
    assert steps_in_rounds(ROUNDS, 4) == 3 * 20 * 4 + 2 * 20 * 3
    assert steps_in_rounds([], 4) == 0


def test_the_picture_leaves_out_who_was_away_and_shades_that(tmp_path):
    with picture(tmp_path / "p.png", inches=(6, 4), footnote="") as figure:
        losses, presence = figure.subplots(2)
        shade_outages(losses, ROUNDS)
        draw_participation(presence, ROUNDS, [OUTAGE], 4)
    assert [(span.get_x(), span.get_width()) for span in losses.patches] == [(40, 20), (60, 20)]
    spans = [[path.get_extents().intervalx.tolist() for path in row.get_paths()] for row in presence.collections]
    everywhere = [[0, 20], [20, 40], [40, 60], [60, 80], [80, 100]]
    assert spans == [everywhere, everywhere, everywhere, [[0, 20], [20, 40], [80, 100]]]
    assert [line.get_xydata().tolist() for line in presence.lines] == [[[47, 3]]]


_UNDISTURBED = dataclasses.replace(REPORT, participation=[], outages=[])


@pytest.mark.parametrize(
    "report", [REPORT, dataclasses.replace(_UNDISTURBED, settings=DemoSettings(replicas=1, steps=100))]
)
def test_the_picture_is_a_png_of_readable_size(tmp_path, report):
    draw(report, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG"
        assert image.width >= 1500


def test_the_picture_shows_the_curves_and_names_them_with_their_ends(tmp_path):
    with picture(tmp_path / "p.png", inches=(6, 4), footnote="") as figure:
        axes = figure.subplots()
        draw_losses(axes, [("alone", REPORT.alone, ORANGE), ("DiLoCo", REPORT.diloco, BLUE)])
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[20, 3.1], [100, 2.0]], [[20, 3.0], [100, 1.8]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["alone: 2.000", "DiLoCo: 1.800"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (3_303_014_400, "3.30 GB"),
        (5e13, "50.0 TB"),
    ],
)
def test_bytes_have_three_digits(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_a_single_thing_is_no_plural():
    assert [format_count(n, "replica") for n in (0, 1, 2)] == ["0 replicas", "1 replica", "2 replicas"]
