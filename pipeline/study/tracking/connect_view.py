"""The MLflow run of a linear path: barrier/, one/, other/ and line/, whose steps are points."""

from __future__ import annotations

from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.record import TrainRecord, sha, to_json
from pipeline.study.tracking.record_views import train_view
from pipeline.study.tracking.run_views import Point, RunView, flat

RECALIBRATED = "_recalibrated"


def connect_view(record: ConnectRecord, one: TrainRecord, other: TrainRecord) -> RunView:
    """The run of a pair, nested under the training of its first end."""
    parent = train_view(one)
    scores = tuple(record.points[0].scores)
    metrics = {"seed": float(record.seed), "distance": record.distance}
    lines: list[Point] = []
    for recalibrated, suffix in ((False, ""), (True, RECALIBRATED)):
        for score in scores:
            line = record.line(score, recalibrated)
            metrics[f"barrier/{score}{suffix}"] = record.barrier(score, recalibrated)
            metrics |= {f"one/{score}{suffix}": line[0], f"other/{score}{suffix}": line[-1]}
            lines += [Point(f"line/{score}{suffix}", v, i) for i, v in enumerate(line)]
    alphas = [p.alpha for p in record.points if not p.recalibrated]
    lines += [Point("line/alpha", alpha, i) for i, alpha in enumerate(alphas)]
    far = {
        "training": other.training,
        "at": record.other.at,
        "method": other.method,
        "data_seed": other.recipe.get("data_seed"),
    }
    own = {"pair": record.pair, "one": {"at": record.one.at}, "other": far}
    return RunView(
        stage="connect",
        key=record.pair,
        name=f"connect/{record.pair}",
        sha=sha(record),
        params={**parent.params, **flat(own)},
        points=(*(Point(name, value) for name, value in metrics.items()), *lines),
        tags={**parent.tags, "stage": "connect", "pair": record.pair},
        document=to_json(record),
        data=parent.data,
        parent=parent.sha,
    )
