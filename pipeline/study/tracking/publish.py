"""Publishing: every record of a study as a complete MLflow run, once, wherever it was computed.

A run is found by the hash of its record (tag `record_sha`), never by name or age. So a stage that
DVC restored, a clone without its database and another server all end with the same runs, and the
tables, which read MLflow only (`runs_for`, `curves_for`), come out byte-identical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import EvalRecord, TrainRecord, from_json, read_record, sha
from pipeline.study.records.sweep import SweepRecord
from pipeline.study.tracking.connect_view import connect_view
from pipeline.study.tracking.events import Event, read_events
from pipeline.study.tracking.provenance import is_dead, owner
from pipeline.study.tracking.run_views import (
    RunView,
    evaluate_view,
    point_view,
    sweep_view,
    train_view,
    with_events,
)
from pipeline.study.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Entry:
    """One training, pruning or swept training of params.yaml.

    Attributes:
        key: its name there; training: the training it belongs to (itself for a training).
        record: where its record is, if it was run.
        events: its event files, e.g. of finetune and evaluate; missing ones are no error.
        asked: what a table says of it when it was not run: model, method, rule, target, ...
        reference: width arguments of the network that its sizes count from, where a pruning names
            one; its record does not.
    """

    key: str
    training: str
    record: Path
    events: tuple[Path, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """What params.yaml asks for, in its order; `name` is the MLflow experiment.

    `data` is the file of the record of its data, needed where a pruning names a reference.
    `prunings`, `sweeps` and `pairs` whose record is absent were not run; so were trainings.
    """

    name: str
    trainings: Sequence[Entry]
    prunings: Sequence[Entry] = ()
    sweeps: Sequence[Entry] = ()
    pairs: Sequence[Entry] = ()
    data: Path | None = None

    @cached_property
    def _data(self) -> DataRecord | None:
        found = self.data is not None and self.data.exists()
        return read_record(DataRecord, self.data) if found and self.data else None

    @cached_property
    def views(self) -> dict[str, tuple[RunView, ...]]:
        """The runs of this study by "train/<key>", "evaluate/<key>", "sweep/<key>",
        "connect/<key>"; parents first, a sweep with its points behind it. Entries without a record
        are left out.

        Raises:
            ValueError: a record is damaged, or cites another training record than the one there.
        """
        from pipeline.study.records.counts import reference_of  # imports torch

        trainings = {e.key: read_record(TrainRecord, e.record) for e in _done(self.trainings)}
        views: dict[str, tuple[RunView, ...]] = {}
        for entry in _done(self.trainings):
            views[f"train/{entry.key}"] = (_full(train_view(trainings[entry.key]), entry),)
        for entry in _done(self.prunings):
            pruning = read_record(EvalRecord, entry.record)
            parent = _parent(trainings, entry, pruning.training_sha)
            base = reference_of(pruning, parent, entry.reference, self._data)
            views[f"evaluate/{entry.key}"] = (_full(evaluate_view(pruning, parent, base), entry),)
        for entry in _done(self.sweeps):
            sweep = read_record(SweepRecord, entry.record)
            parent = _parent(trainings, entry, sweep.training_sha)
            top = _full(sweep_view(sweep, parent), entry)
            points = [point_view(leaf, parent, top.sha) for leaf in sweep.leaves()]
            views[f"sweep/{entry.key}"] = (top, *points)
        for entry in _done(self.pairs):
            pair = read_record(ConnectRecord, entry.record)
            one, other = (
                _parent(trainings, replace(entry, training=end.training), end.training_sha)
                for end in (pair.one, pair.other)
            )
            views[f"connect/{entry.key}"] = (_full(connect_view(pair, one, other), entry),)
        return views


def publish(study: Study) -> dict[str, str]:
    """Make MLflow hold one complete run per record; returns record hash -> run id.

    Runs that are there and complete are not touched. Runs of killed processes are marked KILLED,
    or removed where a complete run now stands for them.

    Raises:
        RuntimeError: no mlflow, or no answer from the server; the message says what to do.
    """
    try:
        store = Store(study.name)
        with store.lock("publish"):
            return _publish(store, study)
    except (ValueError, FileNotFoundError):
        raise  # a damaged record or event file: its own message names it
    except Exception as error:
        raise RuntimeError(_no_answer(error)) from error


def runs_for(experiment: str, shas: Sequence[str]) -> pd.DataFrame:
    """The runs of these records, in this order: columns record_sha, run, metrics.*, params.*,
    tags.*; what MLflow holds, not what the files say.

    Raises:
        KeyError: a record has no finished run; it was not published.
    """
    import pandas as pd

    found = _sealed(Store(experiment))
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
    """Long table of the curves of these records: training, epoch, step, metric, value. Only what
    the records hold: no wall times."""
    import pandas as pd

    store = Store(experiment)
    found = _sealed(store)
    rows = []
    for record_sha in shas:
        run = found[record_sha]
        names = sorted(n for n in run.data.metrics if n.startswith("curve/") and not _timed(n))
        history = {n: store.history(run.info.run_id, n) for n in names}
        epochs = {p.step: int(p.value) for p in history.pop("curve/epoch", [])}
        for name, points in history.items():
            rows += [
                (run.data.tags["training"], epochs[p.step], p.step, name[6:], p.value)
                for p in points
            ]
    return pd.DataFrame(rows, columns=["training", "epoch", "step", "metric", "value"])


def sweeps_for(experiment: str, shas: Sequence[str]) -> list[SweepRecord]:
    """The records of these sweeps as MLflow holds them: their weight distributions are too many
    numbers for metrics."""
    store = Store(experiment)
    found = _sealed(store)
    documents = [store.document(found[record_sha].info.run_id) for record_sha in shas]
    return [from_json(SweepRecord, text, "record.json") for text in documents]


def show_in_runs(experiment: str, figures: Mapping[str, Path]) -> None:
    """Put figures into the runs of these records: record hash -> file."""
    store = Store(experiment)
    found = _sealed(store)
    for record_sha, path in figures.items():
        store.attach_figure(found[record_sha].info.run_id, path)


def lines_for(experiment: str, shas: Sequence[str]) -> pd.DataFrame:
    """Long table of the scores along linear paths: pair, alpha, metric, value."""
    import pandas as pd

    store = Store(experiment)
    found = _sealed(store)
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


def _timed(name: str) -> bool:
    """Seconds of an epoch are of one machine and one day: no table or figure is made of them."""
    return name.startswith("curve/system/")


def _publish(store: Store, study: Study) -> dict[str, str]:
    found = _sealed(store)
    ids: dict[str, str] = {}
    for view in (v for group in study.views.values() for v in group):
        run = found.get(view.sha)
        if run is not None and not _holds(run, view):
            store.delete(run.info.run_id)
            run = None
        nested = _nested(view, ids)
        if run is None:
            ids[view.sha] = _log(store, view, nested)
            continue
        ids[view.sha] = str(run.info.run_id)
        told = {"row": view.tags["row"], **nested}
        if any(run.data.tags.get(k) != v for k, v in told.items()):
            store.describe(run.info.run_id, {}, told)
    for run in store.runs(_SEALED):
        if ids.get(run.data.tags["record_sha"], run.info.run_id) != run.info.run_id:
            store.delete(run.info.run_id)  # the same work twice: `dvc repro -f`, another machine
    _reconcile(store, study)
    store.show_views({v.tags["row"] for group in study.views.values() for v in group})
    return ids


def _nested(view: RunView, ids: Mapping[str, str]) -> dict[str, str]:
    """Tags that show a run under its parent. They change when a sweep gets another point."""
    if view.parent is None:
        return {}
    return {"mlflow.parentRunId": ids[view.parent], "parent_sha": view.parent}


def _log(store: Store, view: RunView, nested: Mapping[str, str]) -> str:
    points = (*view.points, *view.extra)
    times = [p.time for p in points if p.time is not None]
    first, last = (min(times), max(times)) if times else (None, None)
    tags = {"stage": view.stage, "key": view.key, "owner": owner()}
    tags["source"] = "published" if times else "republished"
    run_id = store.create(view.name, {**view.tags, **tags, **nested}, first)
    store.describe(run_id, view.params, {})
    store.log(run_id, points)
    store.attach(run_id, view)
    store.seal(run_id, view, last)
    return run_id


def _sealed(store: Store) -> dict[str, Any]:
    """Finished runs by record hash; of two the older one."""
    runs = store.runs(_SEALED)
    return {run.data.tags["record_sha"]: run for run in reversed(runs)}


def _holds(run: Any, view: RunView) -> bool:
    """Does the run say what the record says? Nobody edited it, and no point was lost."""
    metrics, params = run.data.metrics, run.data.params
    return all(metrics.get(k) == v for k, v in view.summary().items()) and all(
        params.get(k) == v for k, v in view.params.items()
    )


def _reconcile(store: Store, study: Study) -> None:
    """Runs without a record whose process has ended: superseded ones go, the rest are KILLED."""
    done = {tuple(name.split("/", 1)) for name in study.views}
    done |= {(stage, key) for kind, key in done if kind == "evaluate" for stage in _BEFORE}
    for run in store.runs("tags.owner != ''"):
        tags, running = run.data.tags, run.info.status == "RUNNING"
        if "record_sha" in tags or (running and not is_dead(tags["owner"])):
            continue
        if running or run.info.status == "FINISHED":
            if (tags.get("stage"), tags.get("key")) in done:
                store.delete(run.info.run_id)
            elif running:
                store.end(run.info.run_id, "KILLED")


_SEALED = "attributes.status = 'FINISHED' AND tags.record_sha != ''"
_BEFORE = ("prune", "finetune")  # stages without a record; the evaluate record stands for them


def _done(entries: Sequence[Entry]) -> list[Entry]:
    return [e for e in entries if e.record.exists()]


def _full(view: RunView, entry: Entry) -> RunView:
    events: list[Event] = []
    for path in entry.events:
        if path.exists():
            events += read_events(path)
    return with_events(view, events)


def _parent(trainings: Mapping[str, TrainRecord], entry: Entry, training_sha: str) -> TrainRecord:
    training = trainings.get(entry.training)
    if training is None or sha(training) != training_sha:
        raise ValueError(
            f"{entry.record}: made from another record of training {entry.training!r} "
            f"({training_sha[:12]}) than the one present. Run `dvc repro`"
        )
    return training


def _no_answer(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "publishing needs mlflow: `pip install 'mlflow>=3.17,<4'` (records are complete)"
    return (
        f"MLflow does not answer ({type(error).__name__}: {error}). Records are complete; start "
        "the server or unset MLFLOW_TRACKING_URI, then run `dvc repro` again"
    )
