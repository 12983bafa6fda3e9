"""Figures of papers drawn again: the published values, and ours over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.build.figures import save_figure
from reports.build.papers.comparison import our_runs
from reports.build.papers.published import Paper, PublishedFigure, PublishedTable, Value
from reports.build.quantities import QUANTITIES, Run
from reports.build.table import dicts, whole_range

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = ("#1f6feb", "#d1570a", "#2da44e", "#8250df")
_PUBLISHED = 0.18  # opacity of the published range


def write_paper_figures(paper: Paper, study: str, runs: pd.DataFrame, folder: Path) -> list[str]:
    """Draw the figures of which `study` has run a row, on a light (SVG, PNG) and on a dark ground
    (SVG); returns their names.

    A published line is thin with its range as a band, ours are points with their range as bars.

    Args:
        runs: as for `paper_table`.
    """
    every, written = dicts(runs), []
    for name, figure in paper.figures.items():
        rows = [row for line in figure.lines for row in paper.tables[line.table].rows]
        ours = [row for row in rows if row.ours and row.ours.study == study]
        if any(our_runs(paper, row, every) for row in ours):
            stem = f"{paper.paper}-{name}"
            _save(paper, figure, every, folder / stem, dark=False)
            _save(paper, figure, every, folder / f"{stem}-dark", dark=True)
            written.append(stem)
    return written


def _save(
    paper: Paper, figure: PublishedFigure, runs: Sequence[Run], stem: Path, *, dark: bool
) -> None:
    def draw(panels: Any) -> None:
        for ax, key in zip(panels[0], figure.quantities, strict=True):
            for line, colour in zip(figure.lines, _COLOURS, strict=False):
                table = paper.tables[line.table]
                groups = [our_runs(paper, row, runs) for row in table.rows]
                _published(ax, table, figure.against, key, colour)
                _ours(ax, groups, figure.against, key, colour)
            ax.set(xscale="log", xlabel=QUANTITIES[figure.against].header)
            ax.set_ylabel(QUANTITIES[key].header)
            ax.xaxis.set_inverted(True)
            ticks = [100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0]
            low, high = sorted(ax.get_xlim())
            ax.set_xticks([t for t in ticks if low <= t <= high])
            ax.set_xticks([], minor=True)
            ax.xaxis.set_major_formatter("{x:g}")
        _legend(panels[0][-1], figure)
        panels[0][0].figure.suptitle(
            f"{figure.title} ({paper.reference})", fontsize="medium", wrap=True
        )

    formats = ("svg",) if dark else ("svg", "png")
    save_figure(stem, draw, (1, len(figure.quantities)), formats, dark)


def _published(ax: Any, table: PublishedTable, against: str, key: str, colour: str) -> None:
    rows = [row.values for row in table.rows if {against, key} <= row.values.keys()]
    x = [row[against].value for row in rows]
    ax.plot(x, [row[key].value for row in rows], color=colour, lw=1.0)
    ends = [[_end(row[key], end) for row in rows] for end in ("low", "high")]
    ax.fill_between(x, *ends, color=colour, alpha=_PUBLISHED, linewidth=0)


def _end(value: Value, end: str) -> float:
    found = getattr(value, end)
    return value.value if found is None else float(found)


def _ours(ax: Any, groups: Sequence[Sequence[Run]], against: str, key: str, colour: str) -> None:
    x, y = QUANTITIES[against], QUANTITIES[key]
    for group in groups:
        if not group or x.read is None or y.read is None or any(y.field not in r for r in group):
            continue
        at = x.read(group[0])
        spread = whole_range("y", [y.read(run) for run in group])
        if spread["y_low"] is not None:
            ax.vlines(at, spread["y_low"], spread["y_high"], color=colour, lw=1.6)
        ax.plot(at, spread["y"], "o", color=colour, ms=5, mec="white", mew=0.6)


def _legend(ax: Any, figure: PublishedFigure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, lw=1.0, label=f"{line.name}")
        for line, colour in zip(figure.lines, _COLOURS, strict=False)
    ]
    handles.append(
        Line2D([], [], color="grey", lw=6, alpha=2 * _PUBLISHED, label="published range")
    )
    handles.append(Line2D([], [], color="grey", marker="o", lw=1.6, label="ours, mean and range"))
    ax.legend(handles=handles, bbox_to_anchor=(1.02, 1), loc="upper left")
