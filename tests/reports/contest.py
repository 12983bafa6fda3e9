"""A contest with fixed, made-up numbers: networks, methods, seeds and targets."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.study.records.record import (
    Counts,
    CurvePoint,
    EvalRecord,
    TrainRecord,
    sha,
    write_record,
)
from pipeline.study.tracking.record_views import evaluate_view
from pipeline.study.tracking.study_runs import Entry, Study
from tests.reports.samples import frame

NETWORKS = {"resnet20": (270_000, 41_000_000, 91.8), "vgg16_bn": (15_000_000, 313_000_000, 93.6)}
# epochs, how gently accuracy falls, structured?, method params
METHODS: dict[str, tuple[int, float, bool, dict[str, Any]]] = {
    "dense": (160, 1.0, False, {}),
    "hspg": (160, 0.45, True, {"penalty": 0.001, "epsilon": 0.9}),
    "sfw": (160, 0.6, False, {"k_frac": 0.05, "radius_factor": 15.0}),
    "slimming": (160, 0.5, True, {"penalty": 0.0001}),
    "imp": (1600, 0.25, False, {"rounds": 10, "prune_per_round": 0.2}),
    "gates": (60, 0.5, True, {"lr": 0.01, "balance": 0.5}),
}
TARGETS = (0.5, 0.7, 0.9)


def training(network: str, method: str, seed: int) -> TrainRecord:
    """A training of `network`; its accuracy varies with the seed by a few tenths."""
    epochs, _, _, params = METHODS[method]
    top1 = NETWORKS[network][2] + random.Random(f"{network}{method}{seed}").gauss(0.0, 0.15)
    curve = [
        CurvePoint(e, 352 * (e + 1), "train", {"validation/top1": top1 - 40.0 * math.exp(-6.0 * t)})
        for e, t in ((round(epochs * t / 10) - 1, t / 10) for t in range(1, 11))
    ]
    return TrainRecord(
        training=f"{network}-{method}-s{seed}",
        model=f"{'vgg' if 'vgg' in network else 'resnet_cifar'}/{network}",
        model_args={},
        method=method,
        method_params=params,
        recipe={"epochs": epochs, "batch_size": 128, "optimizer": {"name": "sgd", "lr": 0.1}},
        data="cifar10",
        seed=seed,
        parents={"data": "d" * 64},
        curve=tuple(curve),
        weights_sha=f"{seed}" * 64,
    )


def pruning(source: TrainRecord, target: float) -> EvalRecord:
    """A pruning of it to `target`; the lost accuracy grows with it."""
    network = source.model.rpartition("/")[2]
    params, macs, _ = NETWORKS[network]
    _, harm, structured, _ = METHODS[source.method]
    luck = random.Random(f"{source.training}{target}")
    dense = source.curve[-1].values["validation/top1"]
    lost = harm * 12.0 * target**6 + abs(luck.gauss(0.0, 0.12))
    left = (1.0 - target) * luck.uniform(0.98, 1.02)
    size, work = round(params * left), round(macs * left**0.9)
    kept = (size, work) if structured else (params, macs)
    return EvalRecord(
        pruning=f"{source.training}-p{round(100 * target)}",
        training=source.training,
        training_sha=sha(source),
        model=source.model,
        method=source.method,
        data=source.data,
        seed=source.seed,
        at="final",
        granularity="structured" if structured else "unstructured",
        saliency="method",
        target={"rule": "fraction", "value": target, "scope": "global"},
        finetune={"epochs": 0, "batch_size": 128},
        finetuned=False,
        dense={"loss": 0.3, "top1": dense},
        pruned={"loss": 0.5, "top1": dense - lost},
        final={"loss": 0.5, "top1": dense - lost},
        counts=Counts(params, kept[0], size, macs, kept[1], work),
        input_shape=(3, 32, 32),
        weight_sparsity=target,
        group_sparsity=target if structured else None,
        plan_digest="e" * 64,
    )


def records(seeds: int = 5) -> Iterator[tuple[TrainRecord, EvalRecord]]:
    """Everything, targets of one training together."""
    for network in NETWORKS:
        for method in METHODS:
            for seed in range(seeds):
                source = training(network, method, seed)
                for target in TARGETS:
                    yield source, pruning(source, target)


def runs(seeds: int = 5, latency: bool = False) -> pd.DataFrame:
    """What `runs_for` answers for the prunings."""
    found = frame([evaluate_view(p, t) for t, p in records(seeds)])
    if latency:
        found["metrics.latency/batch1_ms"] = found["metrics.size/macs_kept"] / 4e6
    return found


def write_contest(folder: Path, seeds: int = 5) -> Study:
    """The records below `folder`, as a study."""
    trainings: dict[str, Entry] = {}
    prunings = []
    for source, row in records(seeds):
        here = folder / "records"
        entry = Entry(source.training, source.training, here / f"train/{source.training}.json")
        if trainings.setdefault(source.training, entry) is entry:
            write_record(entry.record, source)
        entry = replace(entry, key=row.pruning, record=here / f"evaluate/{row.pruning}.json")
        write_record(entry.record, row)
        prunings.append(entry)
    return Study("contest", tuple(trainings.values()), tuple(prunings))
