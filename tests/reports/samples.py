"""A small study with fixed numbers: two methods, two seeds, a sweep, one pruning not run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from pipeline.study.params.schema import Ranked
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from pipeline.study.records.record import (
    Counts,
    CurvePoint,
    Difference,
    EvalRecord,
    Exactness,
    TrainRecord,
    sha,
    write_record,
)
from pipeline.study.records.sweep import Histogram, SweepPoint, SweepRecord, WeightDistribution
from pipeline.study.tracking.run_views import RunView
from pipeline.study.tracking.store import Store
from pipeline.study.tracking.study_runs import Entry, Study

DATA_SHA = "d" * 64
_template = tempfile.TemporaryDirectory()


def train_record(method: str = "hspg", seed: int = 0, lr: float = 0.1) -> TrainRecord:
    """Three epochs of a training."""
    return TrainRecord(
        training=f"resnet8-{method}-s{seed}",
        model="resnet_cifar/resnet8",
        model_args={"width": 8},
        method=method,
        method_params={"epsilon": 0.9, "stages": [1, 2], "cap": None},
        recipe={"epochs": 3, "optimizer": {"name": "sgd", "lr": lr}},
        data="digits",
        seed=seed,
        parents={"data": DATA_SHA},
        curve=tuple(curve(seed)),
        weights_sha=f"{seed}" * 64,
    )


def curve(seed: int = 0) -> list[CurvePoint]:
    """Values that look like a training's."""
    return [
        CurvePoint(
            epoch=e,
            step=10 * (e + 1),
            phase="train",
            values={"train/loss": 1.0 / (e + 1 + seed), "validation/top1": 80.0 + 5 * e + seed},
        )
        for e in range(3)
    ]


def eval_record(training: TrainRecord, fraction: float = 0.5) -> EvalRecord:
    """A structured pruning of it."""
    zeros = training.method == "hspg"
    rule = {"rule": "zeros", "value": 0.0} if zeros else {"rule": "fraction", "value": fraction}
    final = {"loss": 0.2, "top1": 95.0 + training.seed}
    return EvalRecord(
        pruning=f"{training.training}-p{round(100 * fraction)}",
        training=training.training,
        training_sha=sha(training),
        model=training.model,
        method=training.method,
        data=training.data,
        seed=training.seed,
        at="final",
        granularity="structured",
        saliency="method",
        target={**rule, "scope": "global"},
        finetune={"epochs": 2},
        finetuned=True,
        dense={"loss": 0.1, "top1": 97.0 + training.seed},
        pruned={"loss": 0.9, "top1": 60.5},
        final=final,
        counts=Counts(1000, 520, 500, 20_000, 9_000, 8_000),
        input_shape=(1, 8, 8),
        weight_sparsity=0.48,
        group_sparsity=0.5,
        plan_digest="e" * 64,
        exactness=Exactness(Difference(2e-7, 1e-7), Difference(3e-7, 1.5e-7) if zeros else None),
        finetune_curve=tuple(curve(7)[:2]),
    )


def of_network(network: NetworkSpec) -> tuple[TrainRecord, EvalRecord]:
    """The records of a training of it and of a pruning to half, as stages write them."""
    counted = count_network(network, network.build())
    sizes = (counted.params, counted.params // 2, counted.params // 2)
    work = (counted.macs, counted.macs // 2, counted.macs // 2)
    model = f"{network.family}/{network.name}"
    training = replace(train_record("gates"), model=model, model_args=dict(network.args))
    shape = network.info.input_shape
    pruned = replace(eval_record(training), counts=Counts(*sizes, *work), input_shape=shape)
    return training, pruned


def sizes() -> WeightDistribution:
    """1000 parameters, 3 of them zero, in four bins of two layers."""
    return WeightDistribution(
        thresholds=(1.0, 0.1, 0.01),
        above=(0, 400, 950),
        edges=(0.01, 0.1, 1.0),
        layers={
            "all": Histogram(3, 0, (47, 550, 400)),
            "conv.weight": Histogram(0, 1, (500, 400)),
            "conv.bias": Histogram(3, 0, (47, 50)),
        },
    )


def sweep_record(
    training: TrainRecord,
    sparsities: Sequence[float] = (0.5, 0.9),
    ranked_by: Sequence[Ranked] = ("weights", "channels"),
) -> SweepRecord:
    """One-shot points, with and without recalibration."""
    points = [
        SweepPoint(
            ranked=ranked,
            scope="global",
            sparsity=s,
            recalibrated=recalibrated,
            scores={"loss": s, "top1": 97.0 - 60 * s * s + 5 * recalibrated},
            units=800,
            units_kept=round(800 * (1 - s)),
            params_kept=1000 if ranked == "weights" else round(1000 * (1 - s)),
            params_nonzero=round(1000 * (1 - s)),
            macs_kept=20_000 if ranked == "weights" else round(20_000 * (1 - s)),
            macs_nonzero=round(20_000 * (1 - s)),
            plan_digest="f" * 64,
        )
        for ranked in ranked_by
        for s in sparsities
        for recalibrated in (False, True)
    ]
    return SweepRecord(
        training=training.training,
        training_sha=sha(training),
        model=training.model,
        method=training.method,
        data=training.data,
        seed=training.seed,
        params_dense=1000,
        macs_dense=20_000,
        input_shape=(1, 8, 8),
        dense={"loss": 0.1, "top1": 97.0},
        weights=sizes(),
        points=tuple(points),
    )


def write_study(folder: Path, sparsities: Sequence[float] = (0.5, 0.9)) -> Study:
    """Write the records below `folder`; the last pruning of the study has none."""
    trainings = [train_record("dense"), train_record("hspg", 0), train_record("hspg", 1)]
    prunings = [eval_record(t) for t in trainings]
    sweep = sweep_record(trainings[0], sparsities)
    t_entries, p_entries = [], []
    for t in trainings:
        t_entries.append(_entry(folder, "train", t.training, t.training))
        write_record(t_entries[-1].record, t)
    for p in prunings:
        p_entries.append(_entry(folder, "evaluate", p.pruning, p.training))
        write_record(p_entries[-1].record, p)
    asked = {
        "model": "resnet_cifar/resnet8",
        "method": "imp",
        "seed": "0",
        "rule": "zeros",
        "target": "0.0",
    }
    absent = _entry(folder, "evaluate", "resnet8-imp-s0", "resnet8-imp-s0")
    p_entries.append(replace(absent, asked=asked))
    s_entry = _entry(folder, "sweep", sweep.training, sweep.training)
    write_record(s_entry.record, sweep)
    return Study("sample", tuple(t_entries), tuple(p_entries), (s_entry,))


def _entry(folder: Path, kind: str, key: str, training: str) -> Entry:
    stages = ("finetune", "evaluate") if kind == "evaluate" else (kind,)
    events = tuple(folder / "events" / stage / f"{key}.jsonl" for stage in stages)
    return Entry(key, training, folder / "records" / kind / f"{key}.json", events)


@cache
def _initialised() -> Path:
    """An MLflow database as `Store` leaves it; making one costs 4 CPU-seconds, copying nothing."""
    file = Path(_template.name) / "mlflow.db"
    Store("template", f"sqlite:///{file}")
    return file


def sqlite_uri(folder: Path) -> str:
    """A database of its own below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_initialised(), folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


def frames(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `runs_for` answers for the prunings and the sweep points, without an MLflow."""
    groups = [v for name, v in study.views.items() if not name.startswith("train/")]
    prunings = [view for group in groups for view in group if view.stage == "evaluate"]
    points = [view for group in groups for view in group if view.stage == "sweep-point"]
    return frame(prunings), frame(points)


def frame(views: Sequence[RunView]) -> pd.DataFrame:
    """Runs as a frame: metrics, params and tags as columns."""
    rows = [
        {"record_sha": view.sha, "run": view.name}
        | {f"metrics.{k}": v for k, v in sorted(view.summary().items())}
        | {f"params.{k}": v for k, v in sorted(view.params.items())}
        for view in views
    ]
    return pd.DataFrame(rows, columns=None if rows else ["record_sha", "run"])


def check_golden(name: str, text: str) -> None:
    """Compare with tests/golden/<name>; ESPALIER_GOLDEN=write rewrites it (review the diff)."""
    path = Path(__file__).parents[1] / "golden" / name
    if os.environ.get("ESPALIER_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
