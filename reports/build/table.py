"""What a table is: columns, rows, and the runs behind each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
RECALIBRATED = "_recalibrated"  # behind a score: from the run with recomputed BatchNorm statistics
Behind = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """One column: `key` in the rows (`<key>_std` beside it where it varies over seeds), the header
    with its unit, how to round, and the MLflow field it comes from."""

    key: str
    header: str
    source: str
    format: str = "{}"


OF = Column("of", "sizes in % of", "params.reference")  # only where a pruning names a reference
TRAINED = "trained"
OR_REFERENCE = ", or of the reference that the pruning names"


@dataclass(frozen=True)
class Table:
    """Columns and rows. `label` is the key of the column that names a row; `runs` holds, per row,
    the runs behind it: (run name, record hash)."""

    name: str
    title: str
    label: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    runs: tuple[Behind, ...]


def dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
