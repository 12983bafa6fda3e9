"""sweep: one training, pruned one-shot to every sparsity, without retraining -> its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import click
import torch
from torch import Tensor, nn

from pipeline.data.batches import Placement
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.measure.count import Counts
from pipeline.measure.harness import recalibrate
from pipeline.selection.masks import count_of
from pipeline.selection.saliency import group_norm, magnitude
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.selection.threshold import kth_smallest
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.running import task_of
from pipeline.study.execution.runtime import Workplace, stage_process
from pipeline.study.params.load import Params, load_params
from pipeline.study.params.schema import Ranked, Scope, SweepParams
from pipeline.study.records.artifacts import TrainArtifact
from pipeline.study.records.counts import count_network
from pipeline.study.records.record import TrainRecord, read_record, sha, write_record
from pipeline.study.records.sizes import distribution_of
from pipeline.study.records.sweep import SweepPoint, SweepRecord
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.tracker import open_tracker
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import apply_plan


@torch.no_grad()
def ranking(ranked: Ranked, model: nn.Module, units: Units) -> dict[str, Tensor]:
    """The magnitudes that are ranked together.

    Raises:
        ValueError: the network has no channels that can be pruned.
    """
    if ranked == "weights":
        return magnitude(model, units)
    if ranked in ("all", "all_strict"):
        return {name: p.detach().abs() for name, p in model.named_parameters()}
    found = group_norm(model, units)
    if not found:
        raise ValueError("params.yaml: sweep.ranked: channels: this network has no channel group")
    return found


def not_below(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks as in Miao et al.'s program: an entry is removed if it is strictly below the threshold,
    which is entry floor(sparsity * n) of the sorted scores with an additional 0 in front. So one
    entry fewer than the sparsity says is removed, and no entry equal to the threshold."""
    count = count_of(sparsity, sum(s.numel() for s in scores.values()))
    threshold = kth_smallest(list(scores.values()), count) if count else 0.0
    return {name: s >= threshold for name, s in scores.items()}


def plan_of(
    ranked: Ranked, scope: Scope, sparsity: float, scores: dict[str, Tensor]
) -> PruningPlan:
    """A plan that removes floor(sparsity * units) of all units, or of the units of each layer.
    Keeps one channel of every channel group if the sparsity can still be reached."""
    if ranked == "all_strict":
        parts = [scores] if scope == "global" else [{name: s} for name, s in scores.items()]
        masks = {n: mask for part in parts for n, mask in not_below(part, sparsity).items()}
        return PruningPlan(Granularity.UNSTRUCTURED, masks)
    total = sum(s.numel() for s in scores.values())
    spare = count_of(sparsity, total) <= total - len(scores)
    structured = ranked == "channels"
    granularity = Granularity.STRUCTURED if structured else Granularity.UNSTRUCTURED
    target = Target(rule="fraction", value=sparsity, scope=scope, min_units=int(spare))
    return select(scores, granularity, target)


def plans(
    asked: SweepParams, model: nn.Module, units: Units
) -> Iterator[tuple[PruningPlan, dict[str, Any]]]:
    """Every plan of the sweep, with the fields of its points."""
    for ranked in (r for r in get_args(Ranked) if r in asked.ranked):
        scores = ranking(ranked, model, units)
        for scope in sorted(asked.scopes):
            for sparsity in sorted(asked.sparsities):
                plan = plan_of(ranked, scope, sparsity, scores)
                how = {"ranked": ranked, "scope": scope, "sparsity": sparsity}
                counts = {"units": plan.total, "units_kept": plan.kept}
                yield plan, {**how, **counts, "plan_digest": plan.digest()}


def cost(found: Counts) -> dict[str, int]:
    """Parameters and MACs of a pruned network, kept and nonzero."""
    return {
        "params_kept": found.params,
        "params_nonzero": found.params_nonzero,
        "macs_kept": found.macs,
        "macs_nonzero": found.macs_nonzero,
    }


def run(params: Params, key: str, prepared: Prepared, place: Workplace) -> SweepRecord:
    """For each plan: prune the network, score it, and score it with new BatchNorm statistics."""
    asked, source = params.file.sweep, TrainArtifact(paths.training(key))
    training = read_record(TrainRecord, paths.record("train", key))
    source.require(training)
    network, placement = source.network, Placement(device=place.device)
    size = params.file.evaluate.batch_size
    test = make_eval_batches(prepared, prepared.test(), batch_size=size, placement=placement)
    train = make_train_batches(prepared, batch_size=size, seed=training.seed, placement=placement)
    task, dense = task_of(network), source.model()
    units, whole = network.units(dense), count_network(network, dense)
    points = []
    for plan, how in plans(asked, dense, units):
        model = source.model()
        apply_plan(plan, model, units)
        how |= cost(count_network(network, model))
        model.to(place.device)
        fresh = recalibrate(model, train.epoch(0), asked.recalibration_batches)
        for again, candidate in ((False, model), (True, fresh)):
            scores = task.scores(candidate, test)
            points.append(SweepPoint(**how, recalibrated=again, scores=scores))
    return SweepRecord(
        training=key,
        training_sha=sha(training),
        model=training.model,
        method=training.method,
        data=training.data,
        seed=training.seed,
        params_dense=whole.params,
        macs_dense=whole.macs,
        input_shape=network.info.input_shape,
        weights=distribution_of(dense),
        dense=task.scores(dense.to(place.device), test),
        points=tuple(points),
    )


@click.command(cls=StageCommand, help=__doc__)
@instance_option("sweep", "--training", "sweep.trainings")
def main(key: str) -> None:
    params = load_params()
    params.training(key)  # refuses an unknown name before any work
    inputs = Inputs(params, "sweep", key)
    with stage_process("sweep", key, params.file.compute.threads) as place:
        spec = RunSpec("sweep", key, params.file.study, {}, {"training": key})
        with open_tracker(spec, paths.events("sweep", key), live=False) as tracker:
            record = run(params, key, load_prepared(paths.PREPARED), place)
            tracker.metrics({"points": float(len(record.points))})
        inputs.require_unchanged()
        write_record(paths.record("sweep", key), record)


if __name__ == "__main__":
    main()
