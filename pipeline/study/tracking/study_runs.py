"""The runs that a study should have: one per record of what params.yaml asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import EvalRecord, TrainRecord, read_record, sha
from pipeline.study.records.sweep import SweepRecord
from pipeline.study.tracking.connect_view import connect_view
from pipeline.study.tracking.events import Event, read_events
from pipeline.study.tracking.record_views import (
    evaluate_view,
    point_view,
    sweep_view,
    train_view,
)
from pipeline.study.tracking.run_views import RunView, with_events


@dataclass(frozen=True)
class Entry:
    """One training, pruning or swept training of params.yaml.

    Attributes:
        key: its name in params.yaml; training: the training it belongs to, or its own name.
        record: path of its record, if it was run.
        events: its event files, e.g. of finetune and evaluate; they may be missing.
        asked: the table columns for an entry that was not run: model, method, rule, target, ...
        reference: width arguments of the network that its sizes are relative to, if the pruning
            names one; records do not hold them.
    """

    key: str
    training: str
    record: Path
    events: tuple[Path, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """All entries of params.yaml, in its order; `name` is the MLflow experiment.

    `data` is the file of the record of its data, needed if a pruning names a reference. Entries
    without a record were not run.
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
        "connect/<key>"; parents first, a sweep followed by its points. Entries without a record
        are omitted.

        Raises:
            ValueError: a record is damaged, or cites another training record than the present one.
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
