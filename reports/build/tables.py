"""The tables of a study: runs (one per MLflow run) -> rows of a table, not yet rounded.

Runs that differ only in the seed become one row: the mean and, with more than one seed, the sample
standard deviation. Sizes are in percent of the dense network, or of the reference that the pruning
names.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.build.table import (
    NOT_RUN,
    OF,
    OR_REFERENCE,
    RECALIBRATED,
    RECORD,
    SEEDS,
    TRAINED,
    Behind,
    Column,
    Table,
    asked,
    dicts,
    known,
    make_table,
    over_seeds,
    with_reference,
)

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.study.tracking.study_runs import Entry

_WITHOUT_VALUE = ("zeros", "none")  # rules that do not read the target's value
NAMES = ("params.seed", "params.training", "params.pruning")
"""Params that differ between the seeds of one row."""


def main_table(runs: pd.DataFrame, prunings: Sequence[Entry]) -> Table:
    """One row per pruning of params.yaml, in its order; without a record: "not run"."""
    columns: tuple[Column, ...] = (
        *asked("pruning", "model", "method"),
        Column("rule", "rule", "params.target.rule"),
        Column("target", "target", "params.target.value"),
        Column("finetune_epochs", "fine-tune epochs", "params.finetune.epochs"),
        SEEDS,
        *_score_columns(runs, {"dense": "dense", "pruned": "pruned", "final": "final"}),
        _percent("weight_sparsity", "weight sparsity", "metrics.sparsity/weight"),
        _percent("group_sparsity", "group sparsity", "metrics.sparsity/group"),
        *_SIZES,
        _error("exact_masked", "masked vs shrunk", "metrics.exact/masked_max_rel"),
        _error("exact_dense", "dense vs shrunk", "metrics.exact/dense_max_rel"),
        RECORD,
    )
    columns = with_reference(columns, OF.source in runs and bool(runs[OF.source].notna().any()))
    groups = by_seed(dicts(runs), skip=NAMES)
    rows = {g[0]["params.pruning"]: (_row(columns, g), _behind(g)) for g in groups}
    for entry in prunings:
        if not entry.record.exists():
            rows[entry.key] = (_absent(columns, entry, "pruning"), ())
    dense = "the dense network" + OR_REFERENCE * (OF in columns)
    title = f"Prunings: scores on the test set; sizes in percent of {dense}; MACs, not FLOPs"
    ordered = [rows[e.key] for e in prunings if e.key in rows]
    return make_table(("main", title, "pruning"), columns, ordered)


def sweep_table(points: pd.DataFrame, sweeps: Sequence[Entry]) -> Table:
    """One row per swept training (over seeds), protocol and sparsity: without and with
    recalibration of BatchNorm statistics."""
    columns = (
        *asked("model", "method", "training", "ranked", "scope", "sparsity"),
        SEEDS,
        *_score_columns(points, {"dense": "dense", "final": "one-shot"}),
        *_score_columns(points, {"final": "one-shot, BN recalibrated"}, suffix=RECALIBRATED),
        *_SIZES,
        RECORD,
    )
    title = "Sweep: one-shot pruning without retraining, scores on the test set; MACs, not FLOPs"
    runs = _merged_recalibration(dicts(points))
    heading = ("sweep", title, "training")
    return seeds_table(heading, columns, runs, sweeps, ("params.recalibrated",))


def weights_table(sweeps: pd.DataFrame, entries: Sequence[Entry]) -> Table:
    """One row per swept training (over seeds): how many parameters exceed 10, 1, ..., 1e-10, as
    counted by Miao et al., ICLR 2022."""
    counts = {"total": "parameters", "nonzero": "not zero"}
    counts |= {f"above_1e{exponent}": f"> 1e{exponent}" for exponent in range(1, -11, -1)}
    columns = (
        *asked("model", "method", "training"),
        SEEDS,
        *(Column(k, head, f"metrics.weights/{k}", "{:.0f}") for k, head in counts.items()),
        RECORD,
    )
    title = "Weights before pruning: how many of the parameters exceed each magnitude"
    return seeds_table(("weights", title, "training"), columns, dicts(sweeps), entries)


def seeds_table(
    heading: tuple[str, str, str],
    columns: tuple[Column, ...],
    runs: Sequence[dict[str, Any]],
    entries: Sequence[Entry],
    skip: Sequence[str] = (),
) -> Table:
    """One row per group of runs that differ only in the seed and the params in `skip`, then the
    entries that were not run. `heading`: name, title, label of the table."""
    groups = by_seed(runs, skip=(*NAMES, *skip))
    rows: list[tuple[dict[str, Any], Behind]] = [(_row(columns, g), _behind(g)) for g in groups]
    rows += [(_absent(columns, e, heading[2]), ()) for e in entries if not e.record.exists()]
    return make_table(heading, columns, rows)


def scores_of(runs: pd.DataFrame) -> list[str]:
    """Names of the scores in `runs` without the loss, the main one first."""
    names = [c.removeprefix("metrics.final/") for c in runs.columns if "metrics.final/" in c]
    order = {"top1": 0, "top5": 1}
    return sorted((n for n in names if n != "loss"), key=lambda n: (order.get(n, 2), n))


def _score_columns(runs: pd.DataFrame, groups: Mapping[str, str], suffix: str = "") -> list[Column]:
    return [
        Column(f"{group}_{score}{suffix}", f"{label} {score} (%)", source + suffix, "{:.2f}")
        for score in scores_of(runs)
        for group, label in groups.items()
        for source in [f"metrics.{group}/{score}"]
    ]


def _percent(key: str, label: str, source: str) -> Column:
    return Column(key, f"{label} (%)", source, "{:.2f}")


def _error(key: str, label: str, source: str) -> Column:
    return Column(key, f"{label} (max rel. difference)", source, "{:.1e}")


_SIZES = [
    _percent(f"{what.lower()}_{key}", f"{what} {label}", f"metrics.size/{what.lower()}_{key}")
    for what in ("params", "MACs")
    for key, label in (("kept", "kept"), ("nonzero", "non-zero"))
]


def _merged_recalibration(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run per training, protocol and sparsity: scores with recalibrated BatchNorm statistics
    get a suffix. Both points prune by the same plan."""
    merged: dict[Hashable, dict[str, Any]] = {}
    for point in points:
        where = tuple(point[f"params.{k}"] for k in ("training", "ranked", "scope", "sparsity"))
        row = merged.setdefault(where, {"behind": []})
        row["behind"].append((point["run"], point["record_sha"]))
        recalibrated = point["params.recalibrated"] == "true"
        for key, value in point.items():
            if recalibrated and key.startswith("metrics.final/"):
                row[key + RECALIBRATED] = value
            elif key not in row or not recalibrated:
                row[key] = value
    return list(merged.values())


def by_seed(runs: Iterable[dict[str, Any]], skip: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Runs that agree in every param except `skip`; a repeated seed starts another group."""
    groups: dict[Hashable, list[dict[str, Any]]] = {}
    seen: dict[Hashable, int] = {}
    for run in runs:
        same = tuple(
            (k, v) for k, v in run.items() if k.startswith("params.") and k not in skip and known(v)
        )
        again = seen[same, run["params.seed"]] = seen.get((same, run["params.seed"]), -1) + 1
        groups.setdefault((same, again), []).append(run)
    return list(groups.values())


def _row(columns: Sequence[Column], group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in columns:
        values = [v for run in group if known(v := _cell(column, run))]
        if column.source.startswith("metrics.exact/"):
            row[column.key] = max(values) if values else None
        elif column.source.startswith("metrics."):
            row |= over_seeds(column.key, values)
        else:
            row[column.key] = values[0] if values else None
    row["model"] = row["model"].rpartition("/")[2]
    if OF in columns:
        row["of"] = row["of"] or TRAINED
    if row.get("rule") in _WITHOUT_VALUE:
        row["target"] = None
    row["seeds"] = len(group)
    row["record"] = " ".join(sha[:12] for _, sha in _behind(group))
    row["status"] = "done"
    return row


def _cell(column: Column, run: Mapping[str, Any]) -> Any:
    """Sizes in percent of the whole network, sparsities in percent, other values unchanged."""
    value: Any = run.get(column.source)
    if not known(value):
        return None
    if column.source.startswith("metrics.size/"):
        what = column.source.removeprefix("metrics.size/").partition("_")[0]
        return 100.0 * value / whole(run, what)
    return 100.0 * value if column.source.startswith("metrics.sparsity/") else value


def whole(run: Mapping[str, Any], what: str) -> float:
    """The 100%: params or MACs of the reference that the pruning names, else of the trained dense
    network."""
    reference: Any = run.get(f"metrics.size/{what}_reference")
    return float(reference if known(reference) else run[f"metrics.size/{what}_dense"])


def _behind(group: Sequence[Mapping[str, Any]]) -> Behind:
    pairs = (run.get("behind") or [(run["run"], run["record_sha"])] for run in group)
    return tuple(pair for some in pairs for pair in some)


def _absent(columns: Sequence[Column], entry: Entry, name: str) -> dict[str, Any]:
    model = entry.asked.get("model", "").rpartition("/")[2]
    asked = {**entry.asked, "model": model, name: entry.key}
    row: dict[str, Any] = {c.key: asked.get(c.key) for c in columns}
    if row.get("rule") in _WITHOUT_VALUE:
        row["target"] = None
    return {**row, "seeds": 0, "record": "", "status": NOT_RUN}
