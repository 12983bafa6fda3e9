"""Published tables next to ours: `reports/papers/*.yaml`, validated, as tables of a report.

Every value has a source: a mark of the notes it comes from ("[readme]", "[nb]", ...) or a phrase.
Values known only from memory are not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.training.recipe import NonNegative, Strict
from reports.build.quantities import QUANTITIES, Run
from reports.build.table import NOT_RUN, Column, Table, dicts, make_table, over_seeds

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parents[1] / "papers"
MARKS = ("code", "run", "readme", "nb", "sec", "OURS")
"""Read in the code; executed; printed in the README; printed in a notebook; second-hand; measured
by us with the authors' program."""


def _plain(value: Any) -> Any:
    """`91.0` is short for `{value: 91.0}`, `[91.0, 90.5, 91.2]` for a value and its range."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value}
    if isinstance(value, list) and len(value) == 3:
        return dict(zip(("value", "low", "high"), value, strict=True))
    return value


class Value(Strict):
    """A published number; `std`, or the range `low` to `high`, over repeated trainings."""

    value: float
    std: NonNegative | None = None
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Value:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high come together")
        span = (self.low, self.value, self.high)
        if self.low is not None and sorted(span) != list(span):  # type: ignore[type-var]
            raise ValueError(f"{self.low} <= {self.value} <= {self.high} does not hold")
        return self


def _sourced(text: str) -> str:
    for mark in re.findall(r"\[([^\]]*)\]", text):
        if mark not in MARKS and mark != "recall":
            raise ValueError(f"unknown mark [{mark}] (known: {', '.join(MARKS)}); or use words")
    if "recall" in text.lower():
        raise ValueError("a value known from memory only is not printed; leave the row out")
    return text


Source = Annotated[str, Field(min_length=4), AfterValidator(_sourced)]
Number = Annotated[Value, BeforeValidator(_plain)]


class Ours(Strict):
    """Our matching rows: entries of `prunings` of a study, with `s*` for every seed."""

    study: str
    pruning: str


class Row(Strict):
    """A row as published. `differs`: where our run departs from its protocol."""

    name: str
    values: Mapping[str, Number]
    source: Source | None = None
    ours: Ours | None = None
    differs: tuple[str, ...] = ()


class PublishedTable(Strict):
    """One table. `columns`: quantity -> decimals as published. `source` and `differs` apply to each
    row, in addition to its own."""

    title: str
    columns: Mapping[str, Annotated[int, Field(ge=0, le=6)]]
    source: Source | None = None
    differs: tuple[str, ...] = ()
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _consistent(self) -> PublishedTable:
        unknown = sorted(set(self.columns) - set(QUANTITIES))
        if unknown:
            raise ValueError(f"columns: unknown {unknown[0]!r} (known: {', '.join(QUANTITIES)})")
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise ValueError(f"row {row.name!r} is there twice")
            if row.source is None and self.source is None:
                raise ValueError(f"row {row.name!r}: source: missing, here and for the table")
            for key, number in row.values.items():
                self._check(row.name, key, number.value)
        return self

    def _check(self, row: str, key: str, value: float) -> None:
        if key not in self.columns:
            known = ", ".join(self.columns)
            raise ValueError(f"row {row!r}: values.{key}: no such column (known: {known})")
        if QUANTITIES[key].is_percent and not 1.0 <= value <= 100.0:
            raise ValueError(f"row {row!r}: values.{key}: {value} is not in percent")


class Paper(Strict):
    """A file of `papers/`: its stem, the publication, its tables by name."""

    paper: str
    reference: str
    tables: Mapping[str, PublishedTable]


def load_papers(folder: Path = FOLDER) -> dict[str, Paper]:
    """Every paper of a folder by name.

    Raises:
        ValueError: as `load_paper`.
    """
    return {path.stem: load_paper(path) for path in sorted(folder.glob("*.yaml"))}


def load_paper(path: Path) -> Paper:
    """Read and check one file.

    Raises:
        ValueError: one line per error, naming the file, the table and the row.
    """
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    try:
        paper = Paper.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n".join(_line(path, raw, e) for e in error.errors())) from error
    if paper.paper != path.stem:
        raise ValueError(f"{path}: paper: {paper.paper!r} is not the name of the file")
    return paper


def _line(path: Path, raw: Any, error: Any) -> str:
    """An error with its location: file, table, row by name, key."""
    at = list(error["loc"])
    if len(at) > 3 and at[2] == "rows":
        row = raw["tables"][at[1]]["rows"][at[3]]
        at[3] = repr(row["name"]) if isinstance(row, dict) and "name" in row else at[3]
    return f"{path}: {'.'.join(map(str, at))}: {error['msg']}"


def tables_of(paper: Paper, study: str) -> list[str]:
    """Names of the tables with at least one row of ours in `study`."""
    return [
        name
        for name, table in paper.tables.items()
        if any(row.ours and row.ours.study == study for row in table.rows)
    ]


def paper_table(paper: Paper, name: str, runs: pd.DataFrame) -> Table:
    """Published value, ours (mean ± std over seeds), and the difference ours - published.

    Args:
        runs: one row per evaluated pruning, as for `main_table`; other rows are ignored.

    Raises:
        ValueError: no such table, or two runs of one row have the same seed.
    """
    if name not in paper.tables:
        known = ", ".join(paper.tables)
        raise ValueError(f"paper {paper.paper}: no table {name!r} (known: {known})")
    table = paper.tables[name]
    columns = _columns(table)
    every = dicts(runs)
    behind = [_behind(paper, row, every) for row in table.rows]
    rows = [
        (_row(table, row, group), tuple((run["run"], run["record_sha"]) for run in group))
        for row, group in zip(table.rows, behind, strict=True)
    ]
    title = "; ".join((f"{table.title} ({paper.reference})", *table.differs))
    return make_table((f"{paper.paper}-{name}", title, "row"), columns, rows)


def _columns(table: PublishedTable) -> tuple[Column, ...]:
    columns = [Column("row", "row", "published")]
    for key, decimals in table.columns.items():
        quantity = QUANTITIES[key]
        head = quantity.header
        columns.append(Column(f"paper_{key}", f"{head}: paper", "published", f"{{:,.{decimals}f}}"))
        if quantity.read and any(row.ours for row in table.rows):
            field = quantity.field
            columns.append(Column(f"ours_{key}", f"{head}: ours", field, "{:,.2f}"))
            columns.append(Column(f"difference_{key}", f"{head}: difference", field, "{:+,.2f}"))
    if any(row.ours for row in table.rows):
        columns.append(Column("seeds", "seeds", "params.seed"))
    columns.append(Column("source", "source", "published"))
    if any(row.differs for row in table.rows):
        columns.append(Column("differs", "ours differs", "published"))
    return (*columns, Column("record", "record", "record_sha"))


def _behind(paper: Paper, row: Row, runs: Sequence[Run]) -> list[Run]:
    if row.ours is None:
        return []
    found = [run for run in runs if fnmatchcase(str(run["params.pruning"]), row.ours.pruning)]
    if len({run["params.seed"] for run in found}) < len(found):
        raise ValueError(f"paper {paper.paper}, row {row.name!r}: two runs have the same seed")
    return found


def _row(table: PublishedTable, row: Row, group: Sequence[Run]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "row": row.name,
        "seeds": len(group) if row.ours else None,
        "source": row.source or table.source,
        "differs": "; ".join(row.differs) or None,
        "record": " ".join(str(run["record_sha"])[:12] for run in group),
        "status": NOT_RUN if row.ours and not group else "done",
    }
    for key in table.columns:
        published = row.values.get(key)
        if published is not None:
            cells[f"paper_{key}"] = published.value
            if published.std is not None:
                cells[f"paper_{key}_std"] = published.std
        read = QUANTITIES[key].read
        if read is None or not group or any(QUANTITIES[key].field not in run for run in group):
            continue  # never measured here, not run, or no such score (top-5 of ten classes)
        ours = [read(run) for run in group]
        cells |= {k: v for k, v in over_seeds(f"ours_{key}", ours).items() if v is not None}
        if published is not None:
            cells[f"difference_{key}"] = cells[f"ours_{key}"] - published.value
    return cells
