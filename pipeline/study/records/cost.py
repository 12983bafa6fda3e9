"""Cost of training a network, in multiply-accumulates.

    training    3 x MACs of the dense network x examples seen, over all rounds and phases
    retraining  3 x MACs after pruning        x examples seen

The backward pass of a step costs twice its forward pass (one product for the gradient of the
inputs, one for that of the weights). A masked network is as large as a dense one, so its rounds
count as dense. The arithmetic of the optimizer is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.study.records.record import CurvePoint, EvalRecord, TrainRecord
from pipeline.study.records.sweep import SweepRecord

PASSES = 3
EXAMPLES = "examples"  # the loop's own count in a curve, cumulative like `step`
TICKET = "eb/ticket_epoch/"  # early_bird logs it in the epoch in which a ticket emerges


def examples_seen(curve: Sequence[CurvePoint], recipe: Mapping[str, Any]) -> float:
    """Examples of a whole training: the loop's count or, without it, steps x batch size, which
    counts a small last batch as a full one."""
    if not curve:
        return 0.0
    counted = curve[-1].values.get(EXAMPLES)
    return float(curve[-1].step * recipe.get("batch_size", 0)) if counted is None else counted


def curve_until(training: TrainRecord, state: str) -> tuple[CurvePoint, ...]:
    """The whole epochs up to a named state: "final", "init", "rewind", one named by recipe or
    method ("epoch-5", "best", "ema", "ticket-0.3"), or the end of a phase."""
    return training.curve[: _epochs_until(training, state)]


def _epochs_until(training: TrainRecord, state: str) -> int:
    curve, recipe = training.curve, training.recipe
    if state == "init":
        return 0
    if training.kept is not None and state in training.kept:
        return training.kept[state].epochs
    if state == "rewind":
        step = recipe.get("rewind_step")
        if isinstance(step, int):
            return sum(point.step <= step for point in curve)
        epochs = recipe.get("rewind_epoch")
        return epochs if isinstance(epochs, int) else 0
    emerged = TICKET + state.removeprefix("ticket-")
    ends = [n for n, p in enumerate(curve, 1) if p.phase == state or emerged in p.values]
    return ends[-1] if ends else len(curve)


def examples_until(training: TrainRecord, state: str) -> float:
    """Examples seen until a named state. A state inside an epoch comes before its last batch, so
    all its batches so far are full."""
    reached, recipe = curve_until(training, state), training.recipe
    seen = examples_seen(reached, recipe)
    kept = (training.kept or {}).get(state)
    step = recipe.get("rewind_step") if state == "rewind" else kept and kept.step
    batch = recipe.get("batch_size")
    if not isinstance(step, int) or not isinstance(batch, int):
        return seen
    return seen + (step - (reached[-1].step if reached else 0)) * batch


def training_cost(macs_dense: int, training: TrainRecord, state: str = "final") -> float:
    """MACs of a training until `state`."""
    return PASSES * macs_dense * examples_until(training, state)


def costs(record: EvalRecord | SweepRecord, training: TrainRecord) -> dict[str, float]:
    """MACs until the network of `record` was finished (for a sweep: any of its points), as metrics
    of its run."""
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
