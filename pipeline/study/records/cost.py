"""What a network cost to train, in multiply-accumulates: the currency of every method here.

    training    3 x MACs of the dense network x examples seen, over all rounds and phases
    retraining  3 x MACs that pruning kept    x examples seen

A step costs a forward pass and twice that backward (one product for the inputs' gradient, one for
the weights'). A masked network is as large as a dense one, so its rounds count as dense; what an
optimizer does to the weights is left out (methods differ there by less than the count of batches).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.study.records.record import CurvePoint, EvalRecord, TrainRecord
from pipeline.study.records.sweep import SweepRecord

PASSES = 3
EXAMPLES = "examples"  # the loop's own count in a curve, cumulative as `step` is


def examples_seen(curve: Sequence[CurvePoint], recipe: Mapping[str, Any]) -> float:
    """Examples of a whole training: the loop's count, else steps x batch size, which counts the
    last, smaller batch of an epoch as a full one."""
    if not curve:
        return 0.0
    counted = curve[-1].values.get(EXAMPLES)
    return float(curve[-1].step * recipe.get("batch_size", 0)) if counted is None else counted


def curve_until(training: TrainRecord, state: str) -> tuple[CurvePoint, ...]:
    """The epochs it took to reach a named state: "final", "init", "rewind", or a phase's end."""
    curve = training.curve
    if state == "final":
        return curve
    if state in ("init", "rewind"):
        epochs = training.recipe.get("rewind_epoch") if state == "rewind" else 0
        return curve[: epochs if isinstance(epochs, int) else 0]
    ends = [number for number, point in enumerate(curve, 1) if point.phase == state]
    return curve[: ends[-1]] if ends else curve


def training_cost(macs_dense: int, training: TrainRecord, state: str = "final") -> float:
    """MACs spent on a training until `state`."""
    return PASSES * macs_dense * examples_seen(curve_until(training, state), training.recipe)


def costs(record: EvalRecord | SweepRecord, training: TrainRecord) -> dict[str, float]:
    """MACs spent until the network of `record` stood (of a sweep: any of its points): metrics of
    its run."""
    if isinstance(record, SweepRecord):
        spent, again = training_cost(record.macs_dense, training), 0.0
    else:
        spent = training_cost(record.counts.macs_dense, training, record.at)
        seen = examples_seen(record.finetune_curve, record.finetune)
        again = PASSES * record.counts.macs_kept * seen
    return {
        "cost/train_macs": spent,
        "cost/retrain_macs": again,
        "cost/total_macs": spent + again,
    }
