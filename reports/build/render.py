"""A table as Markdown, CSV and LaTeX: the same numbers, rounded in one place, deterministic bytes.

CSV has the unrounded mean and spread in columns of their own; the others print "mean ± std" or
"mean [lowest, highest]".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_text
from reports.build.table import NOT_RUN, RECALIBRATED, Column, Table, dicts, known

NOTHING = "–"
_NUMBERS = ("seeds", "target", "sparsity", "finetune_epochs")
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", NOTHING: "--"}


def cells(table: Table) -> list[list[str]]:
    """Every cell as text."""
    return [[_text(column, row) for column in table.columns] for row in dicts(table.rows)]


def markdown(table: Table) -> str:
    """A GitHub table under its title; numbers to the right."""
    heads = [c.header for c in table.columns]
    rules = ["---:" if _is_number(c) else "---" for c in table.columns]
    lines = [_line(row) for row in (heads, rules, *cells(table))]
    return f"{table.title}.\n\n" + "\n".join(lines) + "\n"


def plain(table: Table) -> str:
    """For a terminal: aligned columns, numbers to the right, without empty columns and records."""
    heads, rows = [c.header for c in table.columns], cells(table)
    columns = []
    for i, column in enumerate(table.columns):
        texts = [heads[i], *(row[i] for row in rows)]
        if column.key != "record" and set(texts[1:]) - {NOTHING}:
            width = max(map(len, texts))
            side = ">" if _is_number(column) else "<"
            columns.append([f"{text:{side}{width}}" for text in texts])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([f"{table.title}.", *lines])


def latex(table: Table) -> str:
    """A booktabs tabular, without the record column (the CSV and provenance.json have it)."""
    shown = [i for i, c in enumerate(table.columns) if c.key != "record"]
    align = "".join("r" if _is_number(table.columns[i]) else "l" for i in shown)
    heads = [_escaped(table.columns[i].header) for i in shown]
    body = [[_escaped(row[i]) for i in shown] for row in cells(table)]
    rows = [" & ".join(row) + r" \\" for row in body]
    head = [f"% {table.title}", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines = [*head, " & ".join(heads) + r" \\", r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv(table: Table) -> str:
    """All columns, unrounded, spreads in columns of their own."""
    text: str = table.rows.to_csv(index=False, lineterminator="\n")
    return text


def provenance(tables: Sequence[Table]) -> str:
    """The source of every cell: the MLflow field of its column, and runs and records of its row.

    The hash of an evaluate run is the SHA-256 of its record file; that of a sweep point is the
    SHA-256 of its record with only this point.
    """
    return json.dumps({t.name: _sources(t) for t in tables}, indent=2, sort_keys=True) + "\n"


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """All tables in all formats, and provenance.json."""
    for table in tables:
        for suffix, render in (("md", markdown), ("csv", csv), ("tex", latex)):
            write_text(folder / f"{table.name}.{suffix}", render(table))
    write_text(folder / "provenance.json", provenance(tables))


def _sources(table: Table) -> dict[str, Any]:
    fields = {c.header: c.source.removesuffix(RECALIBRATED) for c in table.columns}
    rows = [
        {"row": name, "runs": [{"run": run, "record_sha": sha} for run, sha in behind]}
        for name, behind in zip(table.rows[table.label], table.runs, strict=True)
    ]
    return {"columns": fields, "rows": rows}


def _text(column: Column, row: Mapping[str, Any]) -> str:
    value, spread = row[column.key], row.get(f"{column.key}_std")
    if not known(value):
        measured = column.source.startswith("metrics.")
        return NOT_RUN if measured and row["status"] == NOT_RUN else NOTHING
    if column.key == "record" and not value:
        return NOTHING
    if not isinstance(value, float):
        return str(value)
    text = column.format.format(value)
    if known(spread):
        return f"{text} ± {column.format.format(spread)}"
    ends = [row.get(f"{column.key}_{end}") for end in ("low", "high")]
    if all(map(known, ends)):
        return f"{text} [{', '.join(column.format.format(end) for end in ends)}]"
    return text


def _is_number(column: Column) -> bool:
    """A published value has no source in MLflow, but is rounded."""
    rounded = column.format != Column.format
    return rounded or column.source.startswith("metrics.") or column.key in _NUMBERS


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
