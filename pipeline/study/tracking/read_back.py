"""Read records back from MLflow. Tables are made from these values only.

Every function takes the name of the experiment and record hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.study.records.record import from_json
from pipeline.study.records.sweep import SweepRecord
from pipeline.study.tracking.store import open_store

if TYPE_CHECKING:
    import pandas as pd


def runs_for(experiment: str, shas: Sequence[str]) -> pd.DataFrame:
    """The MLflow runs of these records, in this order. Columns: record_sha, run, metrics.*,
    params.*, tags.*.

    Raises:
        KeyError: a record has no finished run, so it was not published.
    """
    import pandas as pd

    found = open_store(experiment).sealed()
    missing = [s for s in shas if s not in found]
    if missing:
        raise KeyError(f"experiment {experiment!r}: no finished run of record {missing[0][:12]}")
    rows = []
    for record_sha in shas:
        run = found[record_sha]
        row: dict[str, Any] = {"record_sha": record_sha, "run": run.info.run_name}
        for group in ("metrics", "params", "tags"):
            row |= {f"{group}.{k}": v for k, v in sorted(getattr(run.data, group).items())}
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["record_sha", "run"])


def curves_for(experiment: str, shas: Sequence[str]) -> pd.DataFrame:
    """Long table of the curves of these records: training, epoch, step, metric, value. It has no
    wall times and no evaluations inside epochs, because the curves of records have neither."""
    import pandas as pd

    store = open_store(experiment)
    found = store.sealed()
    rows = []
    for record_sha in shas:
        run = found[record_sha]
        names = sorted(n for n in run.data.metrics if _in_curve(n))
        history = {n: store.history(run.info.run_id, n) for n in names}
        epochs = {p.step: int(p.value) for p in history.pop("curve/epoch", [])}
        for name, points in history.items():
            rows += [
                (run.data.tags["training"], epochs[p.step], p.step, name[6:], p.value)
                for p in points
            ]
    return pd.DataFrame(rows, columns=["training", "epoch", "step", "metric", "value"])


def sweeps_for(experiment: str, shas: Sequence[str]) -> list[SweepRecord]:
    """The records of these sweeps, from MLflow's artifacts: weight distributions have too many
    numbers for metrics."""
    store = open_store(experiment)
    found = store.sealed()
    documents = [store.document(found[record_sha].info.run_id) for record_sha in shas]
    return [from_json(SweepRecord, text, "record.json") for text in documents]


def show_in_runs(experiment: str, figures: Mapping[str, Path]) -> None:
    """Attach figures to the runs of records; `figures` is record hash -> file."""
    store = open_store(experiment)
    found = store.sealed()
    for record_sha, path in figures.items():
        store.attach_figure(found[record_sha].info.run_id, path)


def lines_for(experiment: str, shas: Sequence[str]) -> pd.DataFrame:
    """Long table of the scores along linear paths: pair, alpha, metric, value."""
    import pandas as pd

    store = open_store(experiment)
    found = store.sealed()
    rows = []
    for record_sha in shas:
        run = found[record_sha]
        names = sorted(n for n in run.data.metrics if n.startswith("line/"))
        history = {n: store.history(run.info.run_id, n) for n in names}
        alphas = {p.step: p.value for p in history.pop("line/alpha")}
        rows += [
            (run.data.tags["pair"], alphas[p.step], name[5:], p.value)
            for name, points in history.items()
            for p in points
        ]
    return pd.DataFrame(rows, columns=["pair", "alpha", "metric", "value"])


def _in_curve(name: str) -> bool:
    """Whether a metric is a curve of a record: not a wall time, which depends on the machine, and
    not an evaluation on the grid of `evaluate_steps`."""
    return name.startswith("curve/") and not name.startswith(("curve/system/", "curve/evaluation/"))
