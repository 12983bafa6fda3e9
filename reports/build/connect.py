"""Straight lines between two trained states: the table of barriers and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import write_text
from pipeline.study.tracking.connect_view import RECALIBRATED
from reports.build.figures import draw_band, save_figure
from reports.build.style import MARKERS, PALETTE, Style
from reports.build.table import RECORD, SEEDS, Column, Table, asked, dicts, without_seed
from reports.build.tables import seeds_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.study.tracking.study_runs import Entry


def connect_table(runs: pd.DataFrame, pairs: Sequence[Entry]) -> Table:
    """One row per pair of states (over seeds): by how much the worst point of the straight line
    between them falls short of the mean of the two ends."""
    columns = (
        *asked("pair", "model", "method"),
        Column("one_at", "one", "params.one.at"),
        Column("other_at", "other", "params.other.at"),
        SEEDS,
        *_measured(runs),
        Column("distance", "distance", "metrics.distance", "{:.2f}"),
        RECORD,
    )
    title = "Straight lines between two states, test scores: barrier = worst against mean of ends"
    skip = ("params.pair", "params.other.training")
    return seeds_table(("connect", title, "pair"), columns, dicts(runs), pairs, skip)


def _measured(runs: pd.DataFrame) -> Iterator[Column]:
    """Scores of the two ends, then barriers in points of the score or in the loss."""
    fields = [str(c) for c in runs.columns if str(c).startswith("metrics.one/")]
    names = [f.removeprefix("metrics.one/") for f in fields if not f.endswith(RECALIBRATED)]
    scores = [name for name in names if name != "loss"]
    for score in scores:
        for end in ("one", "other"):
            yield Column(f"{end}_{score}", f"{end} {score} (%)", f"metrics.{end}/{score}", "{:.2f}")
    for score in (*scores, "loss"):
        unit, digits = ("", "{:.3f}") if score == "loss" else (" (points)", "{:.2f}")
        for suffix, mark in (("", ""), (RECALIBRATED, ", BN recalibrated")):
            name, head = f"barrier/{score}{suffix}", f"barrier in {score}{mark}{unit}"
            yield Column(name.replace("/", "_"), head, f"metrics.{name}", digits)


def write_lines(lines: pd.DataFrame, folder: Path) -> None:
    """connect.csv and a figure of the scores along each straight line between two states."""
    write_text(folder / "connect.csv", lines.to_csv(index=False, lineterminator="\n"))
    score = next((m for m in ("top1", *lines["metric"]) if m in set(lines["metric"])), None)
    if score:
        save_figure(folder / "connect", partial(_draw, lines=lines, score=score))


def _draw(ax: Any, lines: pd.DataFrame, score: str) -> None:
    """Mean over seeds, band = one standard deviation; dashed = BatchNorm recalibrated."""
    pairs = lines["pair"].map(without_seed)
    for number, (pair, part) in enumerate(lines.groupby(pairs, sort=False)):
        style = Style(*list(PALETTE.values())[number % len(PALETTE)], number % len(MARKERS), number)
        for metric, dashes in ((score, "-"), (f"{score}{RECALIBRATED}", "--")):
            line = part[part["metric"] == metric]
            label = str(pair) if dashes == "-" else None
            draw_band(ax, line.groupby("alpha")["value"], style, dashes, label)
    ax.set(xlabel="alpha in (1 - alpha) * one + alpha * other", ylabel=f"test {score}")
