"""The comparison: tables, a figure, and one self-contained HTML page."""

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
from reports.build.style import Styles
from reports.build.table import Table
from reports.build.tables import scores_of

if TYPE_CHECKING:
    import pandas as pd

WEB = Path(__file__).parent / "web"
_MEASURED = (
    "Latency: median milliseconds of one forward pass, timed once per seed on the machine that "
    "evaluated this study. It does not transfer to other machines and is in no tracked file."
)
_UNKNOWN = (
    "Latency is not on this page: it depends on the machine, while this page is built from records "
    "and has the same bytes everywhere. The report stage writes a page with latency to "
    "reports/local/compare.html."
)


def write_comparison(
    study: str, prunings: pd.DataFrame, points: pd.DataFrame, styles: Styles, out: Path
) -> list[Table]:
    """plots/compare.*, tables/compare.html, and local/compare.html with the latencies of this
    machine; returns the tables.

    Tracked files are built from records alone, so a clone without event files rebuilds the same
    bytes. Latency stays in the folder that git ignores.
    """
    scores = scores_of(prunings) or scores_of(points)
    if not scores:
        return []
    axes = (*AXES, *latency_axes(prunings))
    rows, timed = candidates(prunings, points), candidates(prunings, points, axes)
    write_text(out / "tables" / "compare.html", page(study, rows, AXES, scores, styles))
    write_text(out / "local" / "compare.html", page(study, timed, axes, scores, styles))
    write_compare_figure(rows, scores[0], styles, out / "plots")
    return [compare_table(rows, scores[0]), pairs_table(rows, scores[0])]


def page(
    study: str,
    rows: Sequence[Candidate],
    axes: Sequence[Axis],
    scores: Sequence[str],
    styles: Styles,
) -> str:
    """The page; the same bytes for the same candidates."""
    measured = any(not axis.exact for axis in axes)
    fields = {
        "title": html.escape(f"Pruning methods compared: {study}"),
        "latency": _MEASURED if measured else _UNKNOWN,
        "style": _read("compare.css") + _colours(rows, styles),
        "script": _read("compare.js"),
        "data": to_json(rows, axes, scores, styles),
    }
    return _filled(_read("compare.html"), fields)


def _colours(rows: Sequence[Candidate], styles: Styles) -> str:
    """--c0, --c1, ...: the colours of the methods in the order of the rows, light and dark."""
    found = [styles(method, "") for method in dict.fromkeys(c.method for c in rows)]
    light = "".join(f"--c{i}: {style.light}; " for i, style in enumerate(found))
    dark = "".join(f"--c{i}: {style.dark}; " for i, style in enumerate(found))
    return f':root {{ {light}}}\n:root[data-theme="dark"] {{ {dark}}}'


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match.group(1)], template)
