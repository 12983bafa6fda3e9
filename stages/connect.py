"""connect: scores on the straight line between two trained states of one network -> its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
import torch
from torch import Tensor, nn

from pipeline.data.batches import Placement
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.measure.harness import recalibrate
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.running import task_of
from pipeline.study.execution.runtime import Workplace, stage_process
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import TrainArtifact
from pipeline.study.records.connect import ConnectRecord, PathEnd, PathPoint
from pipeline.study.records.record import TrainRecord, read_record, sha, write_record
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.tracker import open_tracker

Weights = Mapping[str, Tensor]


def between(one: Weights, other: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * one + alpha * other; exactly the ends at 0 and 1. Integers (BatchNorm's count
    of batches) are taken from `one`."""
    return {
        name: torch.lerp(a, other[name], alpha) if a.is_floating_point() else a.clone()
        for name, a in one.items()
    }


def distance(one: Weights, other: Weights, model: nn.Module) -> float:
    """Euclidean distance over the parameters of `model`."""
    squares = [(one[n] - other[n]).double().square().sum() for n, _ in model.named_parameters()]
    return float(torch.stack(squares).sum().sqrt())


def path(
    model: nn.Module, one: Weights, other: Weights, points: int
) -> Iterator[tuple[float, nn.Module]]:
    """Yield (alpha, `model` with the weights at alpha) at equal steps of alpha."""
    for step in range(points):
        alpha = step / (points - 1)
        model.load_state_dict(between(one, other, alpha))
        yield alpha, model


def run(params: Params, key: str, prepared: Prepared, place: Workplace) -> ConnectRecord:
    """Score every point, with interpolated and with recomputed BatchNorm statistics.

    Uses the test split, like a sweep, because these scores choose nothing.
    """
    asked, pair = params.file.connect, params.pair(key)
    refs = (pair.one, pair.other)
    trained = [read_record(TrainRecord, paths.record("train", r.training)) for r in refs]
    source, far = (TrainArtifact(paths.training(r.training)) for r in refs)
    for artifact, record in zip((source, far), trained, strict=True):
        artifact.require(record)
    one, other = source.weights(pair.one.at), far.weights(pair.other.at)
    size, placement = params.file.evaluate.batch_size, Placement(device=place.device)
    test = make_eval_batches(prepared, prepared.test(), batch_size=size, placement=placement)
    train = make_train_batches(prepared, batch_size=size, seed=trained[0].seed, placement=placement)
    task, model = task_of(source.network), source.network.build().to(place.device)
    points = []
    for alpha, current in path(model, one, other, asked.points):
        fresh = recalibrate(current, train.epoch(0), asked.recalibration_batches)
        for recalibrated, candidate in ((False, current), (True, fresh)):
            points.append(PathPoint(alpha, recalibrated, task.scores(candidate, test)))
    ends = [PathEnd(r.training, r.at, sha(t)) for r, t in zip(refs, trained, strict=True)]
    return ConnectRecord(
        pair=key,
        one=ends[0],
        other=ends[1],
        model=trained[0].model,
        method=trained[0].method,
        data=trained[0].data,
        seed=trained[0].seed,
        distance=distance(one, other, model),
        points=tuple(sorted(points, key=lambda p: (p.recalibrated, p.alpha))),
    )


@click.command(cls=StageCommand, help=__doc__)
@instance_option("connect", "--pair", "connect.pairs")
def main(key: str) -> None:
    params = load_params()
    inputs = Inputs(params, "connect", key)
    with stage_process("connect", key, params.file.compute.threads) as place:
        spec = RunSpec("connect", key, params.file.study, {}, {"pair": key})
        with open_tracker(spec, paths.events("connect", key), live=False) as tracker:
            record = run(params, key, load_prepared(paths.PREPARED), place)
            tracker.metrics({"points": float(len(record.points))})
        inputs.require_unchanged()
        write_record(paths.record("connect", key), record)


if __name__ == "__main__":
    main()
