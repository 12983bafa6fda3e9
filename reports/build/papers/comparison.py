"""Published tables with our numbers beside them, and whether our runs bear out a claim."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from reports.build.papers.published import Claim, Paper, Place, PublishedTable, Row, Value
from reports.build.quantities import QUANTITIES, Run
from reports.build.table import NOT_RUN, Column, Table, dicts, make_table, over_seeds, whole_range

if TYPE_CHECKING:
    import pandas as pd


def tables_of(paper: Paper, study: str, prunings: Sequence[str]) -> list[str]:
    """Names of the tables with at least one row of ours among these prunings of `study`, run or
    not. A part of a study has some of the study's prunings."""
    return [
        name
        for name, table in paper.tables.items()
        if any(_asked_by(row, study, prunings) for row in table.rows)
    ]


def _asked_by(row: Row, study: str, prunings: Sequence[str]) -> bool:
    if row.ours is None or row.ours.study != study:
        return False
    return any(fnmatchcase(key, row.ours.pruning) for key in prunings)


def paper_table(paper: Paper, name: str, runs: pd.DataFrame) -> Table:
    """Published value, ours over the seeds, and the difference ours - published. Both as "mean ±
    standard deviation", or as "mean [lowest, highest]" where the paper gives that; then a column
    says whether our mean lies in the published range.

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
    behind = [our_runs(paper, row, every) for row in table.rows]
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
            digits = 2 if decimals or quantity.is_percent else 0
            shown = f",.{digits}f}}"
            columns.append(Column(f"ours_{key}", f"{head}: ours", field, "{:" + shown))
            columns.append(Column(f"difference_{key}", f"{head}: difference", field, "{:+" + shown))
            if any(_ranged(row, key) for row in table.rows):
                columns.append(Column(f"inside_{key}", f"{head}: inside", field))
    if any(row.ours for row in table.rows):
        columns.append(Column("seeds", "seeds", "params.seed"))
    columns.append(Column("source", "source", "published"))
    if any(row.differs for row in table.rows):
        columns.append(Column("differs", "ours differs", "published"))
    return (*columns, Column("record", "record", "record_sha"))


def our_runs(paper: Paper, row: Row, runs: Sequence[Run]) -> list[Run]:
    """The runs of ours that stand beside a published row, one per seed.

    Raises:
        ValueError: two of them have the same seed.
    """
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
            cells |= _spread(f"paper_{key}", published)
        read = QUANTITIES[key].read
        if read is None or not group or any(QUANTITIES[key].field not in run for run in group):
            continue  # never measured here, not run, or no such score (top-5 of ten classes)
        ours = [read(run) for run in group]
        ranged = published is not None and published.low is not None
        spread = whole_range if ranged else over_seeds
        cells |= {k: v for k, v in spread(f"ours_{key}", ours).items() if v is not None}
        if published is not None:
            mean = cells[f"ours_{key}"]
            cells[f"difference_{key}"] = mean - published.value
            if published.low is not None and published.high is not None:
                cells[f"inside_{key}"] = _inside(mean, published.low, published.high)
    return cells


def _ranged(row: Row, key: str) -> bool:
    value = row.values.get(key)
    return value is not None and value.low is not None


def _spread(key: str, value: Value) -> dict[str, float]:
    found = {"std": value.std, "low": value.low, "high": value.high}
    return {f"{key}_{what}": v for what, v in found.items() if v is not None}


def _inside(mean: float, low: float, high: float) -> str:
    return "yes" if low <= mean <= high else "below" if mean < low else "above"


def claims_table(
    paper: Paper, runs: pd.DataFrame, study: str, prunings: Sequence[str]
) -> Table | None:
    """Each claim with the published pair of values, ours, and whether ours bear it out; None if no
    claim speaks of these prunings of `study`.

    Args:
        runs: as for `paper_table`.
    """
    every = dicts(runs)
    rows = []
    for claim in paper.claims:
        places = (claim.smaller, claim.larger)
        at = [_row_of(paper, place) for place in places]
        if all(_asked_by(row, study, prunings) for row in at):
            pair = [our_runs(paper, row, every) for row in at]
            behind = tuple((run["run"], run["record_sha"]) for group in pair for run in group)
            rows.append((_verdict(paper, claim, *pair), behind))
    if not rows:
        return None
    columns = (
        Column("claim", "claim", "published"),
        Column("paper", "paper", "published"),
        Column("ours", "ours", "metrics.computed"),
        Column("seeds", "seeds that agree", "params.seed"),
        Column("verdict", "verdict", "metrics.computed"),
    )
    title = f"What the paper concludes, and whether our runs bear it out ({paper.reference})"
    return make_table((f"{paper.paper}-claims", title, "claim"), columns, rows)


def _row_of(paper: Paper, place: Place) -> Row:
    return next(row for row in paper.tables[place.table].rows if row.name == place.row)


def _verdict(paper: Paper, claim: Claim, low: list[Run], high: list[Run]) -> dict[str, Any]:
    """By the means over all seeds and by the majority of those that ran both: "undecided" where
    these differ."""
    places = (claim.smaller, claim.larger)
    told = [_row_of(paper, place).values[place.quantity].value for place in places]
    decimals = [paper.tables[p.table].columns[p.quantity] for p in places]
    row = {"claim": claim.says, "paper": _pair(told, decimals), "status": "done"}
    means, by_seed = [], []
    for place, group in zip(places, (low, high), strict=True):
        quantity = QUANTITIES[place.quantity]
        if quantity.read is None or not group or any(quantity.field not in r for r in group):
            return row | {"status": NOT_RUN}
        values = {run["params.seed"]: quantity.read(run) for run in group}
        means.append(sum(values.values()) / len(values))
        by_seed.append(values)
    both = by_seed[0].keys() & by_seed[1].keys()
    agree = sum(by_seed[0][seed] < by_seed[1][seed] for seed in both)
    verdict, holds = "undecided", means[0] < means[1]
    if (2 * agree > len(both)) == holds:
        verdict = "holds" if holds else "does not hold"
    ours = {"ours": _pair(means, decimals), "seeds": f"{agree} of {len(both)}"}
    return row | ours | {"verdict": verdict}


def _pair(values: Sequence[float], decimals: Sequence[int]) -> str:
    low, high = (f"{v:,.{n}f}" for v, n in zip(values, decimals, strict=True))
    return f"{low} {'<' if values[0] < values[1] else '>='} {high}"
