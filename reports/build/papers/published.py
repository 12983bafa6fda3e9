"""What papers published: `reports/papers/*.yaml`, validated.

Every value has a source: a mark of the notes it comes from ("[readme]", "[nb]", ...) or a phrase.
Values known only from memory are not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.training.recipe import NonNegative, Strict
from reports.build.quantities import QUANTITIES

FOLDER = Path(__file__).parents[2] / "papers"
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


class Place(Strict):
    """One published value: a row of a table and the quantity in it."""

    table: str
    row: str
    quantity: str


class Claim(Strict):
    """What a paper concludes from two of its values: one is smaller than the other."""

    says: str
    smaller: Place
    larger: Place


class Line(Strict):
    """One line of a figure: the rows of a table, in order."""

    name: str
    table: str


class PublishedFigure(Strict):
    """A figure of a paper: quantities of its tables against another one, on a logarithmic axis.
    `title` names the figure in the paper."""

    title: str
    against: str
    quantities: tuple[str, ...]
    lines: tuple[Line, ...]


class Paper(Strict):
    """A file of `papers/`: its stem, the publication, its tables and figures by name, its claims.

    Every place of a claim and every line of a figure must be in the tables.
    """

    paper: str
    reference: str
    tables: Mapping[str, PublishedTable]
    figures: Mapping[str, PublishedFigure] = {}
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Paper:
        for name, figure in self.figures.items():
            for line in figure.lines:
                columns = self._table(f"figures.{name}", line.table).columns
                for key in (figure.against, *figure.quantities):
                    if key not in columns:
                        raise ValueError(f"figures.{name}: {line.table} has no column {key!r}")
        for claim in self.claims:
            for place in (claim.smaller, claim.larger):
                self._published(f"claim {claim.says!r}", place)
        return self

    def _table(self, where: str, name: str) -> PublishedTable:
        if name not in self.tables:
            raise ValueError(f"{where}: no table {name!r} (known: {', '.join(self.tables)})")
        return self.tables[name]

    def _published(self, where: str, place: Place) -> None:
        rows = {row.name: row for row in self._table(where, place.table).rows}
        if place.row not in rows:
            raise ValueError(f"{where}: {place.table} has no row {place.row!r}")
        if place.quantity not in rows[place.row].values:
            raise ValueError(f"{where}: {place.row!r} has no value {place.quantity!r}")


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
