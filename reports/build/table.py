"""What a table is: columns, rows, and the runs behind each row."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
RECALIBRATED = "_recalibrated"  # suffix of a score with recomputed BatchNorm statistics
Behind = tuple[tuple[str, str], ...]
"""The runs behind a row: (run name, record hash)."""


@dataclass(frozen=True)
class Column:
    """One column: `key` in the rows (where it varies over seeds, beside it `<key>_std`, or
    `<key>_low` and `<key>_high`), the header with its unit, the MLflow field it shows
    (docs/tables.md defines each), and how to round."""

    key: str
    header: str
    source: str
    format: str = "{}"


def asked(*keys: str) -> tuple[Column, ...]:
    """Columns that show params under their own names."""
    return tuple(Column(key, key, f"params.{key}") for key in keys)


SEEDS = Column("seeds", "seeds", "params.seed")
RECORD = Column("record", "record", "record_sha")
OF = Column("of", "sizes in % of", "params.reference")  # only where a pruning names a reference
TRAINED = "trained"
OR_REFERENCE = ", or of the reference that the pruning names"


@dataclass(frozen=True)
class Table:
    """Columns and rows. `label` is the key of the column that names a row; `runs` holds what is
    behind each row."""

    name: str
    title: str
    label: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    runs: tuple[Behind, ...]


def make_table(
    heading: tuple[str, str, str],
    columns: Sequence[Column],
    rows: Sequence[tuple[Mapping[str, Any], Behind]],
) -> Table:
    """A table of rows as mappings, each with the runs behind it; `heading`: name, title, label."""
    import pandas as pd

    beside = [f"{c.key}_{what}" for c in columns for what in ("std", "low", "high")]
    spread = [key for key in beside if any(key in row for row, _ in rows)]
    keys = [*(c.key for c in columns), *spread, "status"]
    frame = pd.DataFrame([dict(row) for row, _ in rows], columns=keys, dtype=object)
    return Table(*heading, tuple(columns), frame, tuple(behind for _, behind in rows))


def over_seeds(key: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean and, with more than one value, sample standard deviation as two cells of a row."""
    return {
        key: statistics.fmean(values) if values else None,
        f"{key}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def whole_range(key: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean and, with more than one value, the lowest and the highest as cells of a row."""
    several = len(values) > 1
    return {
        key: statistics.fmean(values) if values else None,
        f"{key}_low": min(values) if several else None,
        f"{key}_high": max(values) if several else None,
    }


def with_reference(columns: Sequence[Column], wanted: bool) -> tuple[Column, ...]:
    """The columns, with the one that says what sizes are percentages of before the first size."""
    first = next(i for i, c in enumerate(columns) if c.source.startswith("metrics.size/"))
    return (*columns[:first], *[OF] * wanted, *columns[first:])


def without_seed(name: str, seed: object = r"\d+") -> str:
    """resnet8-hspg-s0-p90 -> resnet8-hspg-p90; with `seed`, only if that is its number."""
    return re.sub(rf"-s{seed}(?=-|$)", "", name)


def known(value: Any) -> bool:
    """Is this a value? A field that only other runs have is NaN."""
    return value is not None and value == value


def dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
