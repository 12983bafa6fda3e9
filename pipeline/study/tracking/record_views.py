"""MLflow's view of a record: name, flat params, metrics in named groups, tags.

Metric groups: dense/ pruned/ final/ (test scores), size/ (integers), percent/ (size relative to the
dense network or, if the pruning names one, to its reference), sparsity/, exact/, cost/ (MACs of
training), weights/ (how many exceed a magnitude), kept/ (validation scores of named states), curve/
(numbers of an epoch), latency/ and time/ (from the event file only). Numbers to sort by (seed,
sparsity) are also metrics, because MLflow params are strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.study.records.cost import costs
from pipeline.study.records.record import (
    CurvePoint,
    EvalRecord,
    Exactness,
    Reference,
    TrainRecord,
    sha,
    to_json,
)
from pipeline.study.records.sweep import SweepPoint, SweepRecord
from pipeline.study.tracking.run_views import Point, RunSpec, RunView, flat


def training_spec(draft: TrainRecord, experiment: str, tags: Mapping[str, str]) -> RunSpec:
    """The run of a training that is about to start. `draft` has no curve and no weights yet."""
    own = _train_tags(draft) | dict(tags)
    return RunSpec("train", draft.training, experiment, train_params(draft), own)


def train_view(record: TrainRecord) -> RunView:
    """The run of a training, parent of its prunings and its sweep."""
    return RunView(
        stage="train",
        key=record.training,
        name=f"train/{record.training}",
        sha=sha(record),
        params=train_params(record),
        points=(Point("seed", float(record.seed)), *_kept(record), *curve_points(record.curve)),
        tags=_train_tags(record) | {"weights_sha": record.weights_sha},
        document=to_json(record),
        data=_data(record),
    )


def evaluate_view(
    record: EvalRecord, training: TrainRecord, reference: Reference | None = None
) -> RunView:
    """The run of a pruning: one flat row with the params of its training merged in."""
    own: dict[str, Any] = {
        "pruning": record.pruning,
        "at": record.at,
        "granularity": record.granularity,
        "saliency": record.saliency,
        "target": record.target,
        "finetune": record.finetune,
    }
    counts, spent = asdict(record.counts), costs(record, training)
    if reference is not None:
        own["reference"] = reference.label
        counts |= {"params_reference": reference.params, "macs_reference": reference.macs}
    metrics = {  # MLflow's compare view shows the first one
        **_scores(final=record.final, pruned=record.pruned, dense=record.dense),
        **_counted(counts),
        "sparsity/weight": record.weight_sparsity,
        "seed": float(record.seed),
        **_exactness(record.exactness),
        **spent,
        "cost/total_gmacs": spent["cost/total_macs"] / 1e9,  # MLflow cuts long numbers on an axis
    }
    if record.group_sparsity is not None:
        metrics["sparsity/group"] = record.group_sparsity
    state = (training.kept or {}).get(record.at)
    if state is not None and state.phase_step is not None:
        metrics["early_stop/iteration"] = float(state.phase_step)
    if (early := record.early_stop) is not None:
        metrics |= {"early_stop/iteration": float(early.iteration)}
        metrics |= _scores(early_stop=early.test, early_stop_validation=early.validation)
    target = record.target.get("value")
    if record.target.get("rule") == "fraction" and isinstance(target, int | float):
        metrics["sparsity/target"] = float(target)
    return RunView(
        stage="evaluate",
        key=record.pruning,
        name=record.pruning,  # without a prefix, because MLflow's column of names is narrow
        sha=sha(record),
        params=train_params(training) | flat(own),
        points=(*_points(metrics), *curve_points(record.finetune_curve)),
        tags=_train_tags(training)
        | {
            "stage": "evaluate",
            "pruning": record.pruning,
            "row": _row(training, record.pruning),
            "plan_digest": record.plan_digest,
        },
        document=to_json(record),
        data=_data(training),
        parent=record.training_sha,
    )


def sweep_view(record: SweepRecord, training: TrainRecord) -> RunView:
    """The run of a sweep, parent of its points: scores as curves over sparsity, and the
    distribution of weight magnitudes."""
    view = _swept(record, training)
    return replace(view, points=(*view.points, *_sweep_curves(record)))


def _swept(record: SweepRecord, training: TrainRecord) -> RunView:
    """The common part of the run of a sweep and those of its points."""
    metrics = {"seed": float(record.seed), **_scores(dense=record.dense), **_sizes(record)}
    return RunView(
        stage="sweep",
        key=record.training,
        name=f"sweep/{record.training}",
        sha=sha(record),
        params=train_params(training),
        points=_points(metrics),
        tags=_train_tags(training) | {"stage": "sweep"},
        document=to_json(record),
        data=_data(training),
        parent=record.training_sha,
    )


def _sweep_curves(record: SweepRecord) -> Iterable[Point]:
    """oneshot/top1, oneshot/top1-bn (recalibrated), ... and oneshot/sparsity. The MLflow step is
    the sparsity in thousandths."""
    found: dict[tuple[str, int], float] = {}
    for point in record.points:
        step, marks = round(1000 * point.sparsity), _marks(point)
        found["oneshot/sparsity", step] = point.sparsity
        for name, value in point.scores.items():
            found[f"oneshot/{name}{marks}", step] = value
    return (Point(name, value, step) for (name, step), value in found.items())


def _marks(point: SweepPoint) -> str:
    """Suffix that distinguishes a point from the default point of the same sparsity."""
    unusual = [m for m in (point.ranked, point.scope) if m not in ("weights", "global")]
    return "".join(f"-{m}" for m in unusual) + "-bn" * point.recalibrated


def point_view(leaf: SweepRecord, training: TrainRecord, parent: str) -> RunView:
    """The run of one point of a sweep; `leaf` is one of `SweepRecord.leaves()`."""
    (point,) = leaf.points
    view, marks = _swept(leaf, training), _marks(point)
    how = {k: getattr(point, k) for k in ("ranked", "scope", "sparsity", "recalibrated")}
    counts = ("params_kept", "params_nonzero", "macs_kept", "macs_nonzero", "units", "units_kept")
    dense = {"params_dense": leaf.params_dense, "macs_dense": leaf.macs_dense}
    metrics = {
        **_scores(final=point.scores),
        **_counted(dense | {name: getattr(point, name) for name in counts}),
        "sparsity/target": point.sparsity,
        **costs(leaf, training),
    }
    return replace(
        view,
        stage="sweep-point",
        name=f"sweep/{leaf.training}@{point.sparsity:g}{marks}",
        params={**view.params, **flat(how)},
        points=(*view.points, *_points(metrics)),
        tags={
            **view.tags,
            "stage": "sweep-point",
            "row": _row(training, f"{leaf.training}@{point.sparsity:g}{marks}"),
            "plan_digest": point.plan_digest,
        },
        parent=parent,
    )


def curve_points(curve: Iterable[CurvePoint]) -> list[Point]:
    """The curve of a record, in the form that `points_of` returns for events."""
    return [
        Point(f"curve/{name}", float(value), at.step)
        for at in curve
        for name, value in {**at.values, "epoch": float(at.epoch)}.items()
    ]


def train_params(record: TrainRecord) -> dict[str, str]:
    """Flat params of a training. Those of method and network have common prefixes, so that the
    compare view aligns them."""
    tree = {
        "training": record.training,
        "data": record.data,
        "seed": record.seed,
        "model": record.model,
        "method": record.method,
        "model_args": record.model_args,
        "method_params": record.method_params,
        "recipe": record.recipe,
    }
    return flat(tree)


def _train_tags(record: TrainRecord) -> dict[str, str]:
    return {
        "stage": "train",
        "training": record.training,
        "row": _row(record, record.training),
        "method": record.method,
        "model": record.model,
        "data": record.data,
        "seed": str(record.seed),
    }


def _row(training: TrainRecord, name: str) -> str:
    """The tag by which runs are grouped, equal for all seeds: "hspg-p90 | resnet20-hspg" for a
    pruning resnet20-hspg-s0-p90. The method comes first, because MLflow cuts off long names."""
    base = re.sub(rf"-s{training.seed}(?=-|$)", "", training.training, count=1)
    if not name.startswith(training.training):
        return f"{training.method} | {re.sub(rf'-s{training.seed}(?=-|$)', '', name, count=1)}"
    return f"{training.method}{name.removeprefix(training.training)} | {base}"


def _counted(counts: Mapping[str, int]) -> dict[str, float]:
    """The counts, and the same in percent of the reference or, without one, the dense network."""
    whole = {k: counts.get(f"{k}_reference", counts[f"{k}_dense"]) for k in ("macs", "params")}
    percent = {
        f"percent/{what}_{left}": 100.0 * counts[f"{what}_{left}"] / whole[what]
        for what in whole
        for left in ("kept", "nonzero")
    }
    return {f"size/{name}": float(count) for name, count in counts.items()} | percent


def _data(record: TrainRecord) -> tuple[str, str]:
    return record.data, record.parents.get("data", "")


def _points(metrics: Mapping[str, float]) -> tuple[Point, ...]:
    return tuple(Point(name, value) for name, value in metrics.items())


def _kept(record: TrainRecord) -> Iterable[Point]:
    """kept/best-10/top1, kept/best-10/epochs, at the step at which that epoch ended."""
    for name, state in (record.kept or {}).items():
        step = record.curve[state.epochs - 1].step if state.step is None else state.step
        told = {"epochs": float(state.epochs), **state.validation}
        if state.phase_step is not None:
            told["iteration"] = float(state.phase_step)
        for key, value in told.items():
            yield Point(f"kept/{name}/{key}", value, step)


def _sizes(record: SweepRecord) -> dict[str, float]:
    """Number of parameters above 10, 1, ..., 1e-10: weights/above_1e1, weights/above_1e0, ..."""
    if record.weights is None:
        return {}
    pairs = zip(record.weights.thresholds, record.weights.above, strict=True)
    above = {f"weights/above_1e{round(math.log10(t))}": float(count) for t, count in pairs}
    overall = record.weights.layers["all"]
    nonzero = sum(overall.counts)
    return {"weights/total": float(nonzero + overall.zeros), "weights/nonzero": nonzero, **above}


def _scores(**groups: Mapping[str, float]) -> dict[str, float]:
    """Scores by group, with the loss last."""
    return {
        f"{group}/{name}": scores[name]
        for group, scores in groups.items()
        for name in sorted(scores, key=lambda name: name == "loss")
    }


def _exactness(exactness: Exactness | None) -> dict[str, float]:
    pairs = asdict(exactness).items() if exactness else ()
    return {f"exact/{k}_{m}": v for k, diff in pairs if diff for m, v in diff.items()}
