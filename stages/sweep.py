"""sweep: one training, pruned one-shot to every sparsity, without retraining -> its record."""

from __future__ import annotations

import click

from pipeline.data.batches import Placement
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.study import paths
from pipeline.study.artifacts import TrainArtifact
from pipeline.study.params import Params, load_params
from pipeline.study.records import (
    SweepPoint,
    SweepRecord,
    TrainRecord,
    read_record,
    sha,
    write_record,
)
from pipeline.study.running import task_of
from pipeline.study.runs import RunSpec
from pipeline.study.runtime import Workplace, stage_process
from pipeline.study.tracking import open_tracker
from pipeline.training.measure import recalibrate
from pipeline.units.count import count
from pipeline.units.saliency import compute
from pipeline.units.selection import Target, select
from pipeline.units.surgery import apply_plan


def run(params: Params, key: str, prepared: Prepared, place: Workplace) -> SweepRecord:
    """Load once, then per sparsity: rank, cut, score as it is and with new BatchNorm statistics."""
    asked, source = params.file.sweep, TrainArtifact(paths.training(key))
    training = read_record(TrainRecord, paths.record("train", key))
    network, placement = source.network, Placement(device=place.device)
    size = params.file.evaluate.batch_size
    test = make_eval_batches(prepared, prepared.test(), batch_size=size, placement=placement)
    train = make_train_batches(prepared, batch_size=size, seed=training.seed, placement=placement)
    task, dense = task_of(network), source.model()
    units = network.units(dense)
    saliency = compute("magnitude", asked.granularity, dense, units, training.seed)
    points = []
    for sparsity in sorted(asked.sparsities):
        target = Target(rule="fraction", value=sparsity, scope=asked.scope)
        plan = select(saliency, asked.granularity, target)
        model = source.model()
        apply_plan(plan, model, units)
        cost = count(model, network.example())
        model.to(place.device)
        fresh = recalibrate(model, train.epoch(0), asked.recalibration_batches)
        for recalibrated, candidate in ((False, model), (True, fresh)):
            points.append(
                SweepPoint(
                    sparsity=sparsity,
                    scope=asked.scope,
                    recalibrated=recalibrated,
                    scores=task.scores(candidate, test),
                    params_nonzero=cost.params_nonzero,
                    macs_nonzero=cost.macs_nonzero,
                    plan_digest=plan.digest(),
                )
            )
    whole = count(dense, network.example())
    return SweepRecord(
        training=key,
        training_sha=sha(training),
        model=training.model,
        method=training.method,
        data=training.data,
        seed=training.seed,
        granularity=asked.granularity.value,
        params_dense=whole.params,
        macs_dense=whole.macs,
        input_shape=network.info.input_shape,
        dense=task.scores(dense.to(place.device), test),
        points=tuple(points),
    )


@click.command(help=__doc__)
@click.option("--training", "key", required=True, help="an entry of `sweep.trainings`")
def main(key: str) -> None:
    params = load_params()
    with stage_process("sweep", key) as place:
        spec = RunSpec("sweep", key, params.file.study, {}, {"training": key})
        with open_tracker(spec, paths.events("sweep", key), live=False) as tracker:
            record = run(params, key, load_prepared(paths.PREPARED), place)
            tracker.metrics({"points": float(len(record.points))})
        write_record(paths.record("sweep", key), record)


if __name__ == "__main__":
    main()
