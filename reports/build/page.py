"""The comparison: tables, a figure, and one HTML page that has data, style and script inside it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import write_text
from reports.build.candidates import AXES, Axis, Candidate, candidates, latency_axes
from reports.build.compare import compare_table, pairs_table, to_json
from reports.build.compare_figures import write_compare_figure
from reports.build.table import Table
from reports.build.tables import scores_of

if TYPE_CHECKING:
    import pandas as pd

WEB = Path(__file__).parent / "web"
_MEASURED = (
    "Latency: median milliseconds of one forward pass, timed once per seed where this study was "
    "evaluated; it says nothing of another machine and is in no tracked file."
)
_UNKNOWN = (
    "Latency is not on this page: a clock differs from machine to machine, and this page comes "
    "from records alone, byte for byte the same wherever it is rebuilt. The report stage writes "
    "one with latency to reports/local/compare.html."
)


def write_comparison(
    study: str, prunings: pd.DataFrame, points: pd.DataFrame, out: Path
) -> list[Table]:
    """plots/compare.*, tables/compare.html, and local/compare.html with the latencies of this
    machine; returns the tables.

    Tracked files come from records alone, so that a clone without event files rebuilds the same
    bytes; latency is a clock's word and stays in the ignored folder.
    """
    scores = scores_of(prunings) or scores_of(points)
    if not scores:
        return []
    axes = (*AXES, *latency_axes(prunings))
    rows, timed = candidates(prunings, points), candidates(prunings, points, axes)
    write_text(out / "tables" / "compare.html", page(study, rows, AXES, scores))
    write_text(out / "local" / "compare.html", page(study, timed, axes, scores))
    write_compare_figure(rows, scores[0], out / "plots")
    return [compare_table(rows, scores[0]), pairs_table(rows, scores[0])]


def page(study: str, rows: Sequence[Candidate], axes: Sequence[Axis], scores: Sequence[str]) -> str:
    """The page; the same bytes for the same candidates."""
    measured = any(not axis.exact for axis in axes)
    fields = {
        "title": html.escape(f"Pruning methods compared: {study}"),
        "latency": _MEASURED if measured else _UNKNOWN,
        "style": _read("compare.css"),
        "script": _read("compare.js"),
        "data": to_json(rows, axes, scores),
    }
    return _filled(_read("compare.html"), fields)


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match.group(1)], template)
