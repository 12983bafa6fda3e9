"""Position within a training: phase, epoch, step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

StartFrom = Literal["current", "init", "rewind", "random"]


@dataclass(frozen=True)
class Phase:
    """A part of a training: some epochs with one optimizer and one schedule.

    Attributes:
        name: "warmup", "half-space", "round-3"; names the artefact of this phase.
        epochs: how many epochs it lasts.
        start_from: which weights it begins with.
        lr_epoch: epoch of the recipe's learning-rate schedule at which the phase begins. A phase
            that continues the schedule begins where the previous one stopped; a phase that rewinds
            to epoch k begins at k.
        keep: snapshot the state at the end of this phase under its name (an IMP level).
    """

    name: str
    epochs: int
    start_from: StartFrom = "current"
    lr_epoch: int = 0
    keep: bool = False


@dataclass
class EpochStats:
    """What the loop knows at the end of an epoch; `end_epoch` hooks and schedules read it.

    Attributes:
        epoch: 0-based epoch within the whole training, over all phases.
        phase_epoch: 0-based epoch within the phase.
        train: mean training loss and scores of the epoch; `last_loss` is that of the last batch.
        validation: scores on the validation split; empty if there is none.
        logged: numbers that hooks add; they are tracked as `<method>/<key>`.
        keep: names (of `Method.states`) under which hooks ask to snapshot the state after this
            epoch.
    """

    epoch: int
    phase_epoch: int
    train: Mapping[str, float]
    validation: Mapping[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)

    def values(self) -> dict[str, float]:
        """All numbers, by the names they are tracked under."""
        row = {f"train/{k}": v for k, v in self.train.items() if k != "last_loss"}
        row |= {f"validation/{k}": v for k, v in self.validation.items()}
        return row | {k if "/" in k else f"method/{k}": float(v) for k, v in self.logged.items()}


@dataclass(frozen=True)
class StepContext:
    """The loop's position, given to the per-step hooks. `step` counts optimizer steps of the whole
    training, `phase_step` those of the phase, and `epoch` epochs of the whole training, all from 0.
    `steps_per_epoch` is constant. `loss` is the mean task loss of the batch, for methods with
    `needs_loss`."""

    phase: Phase
    step: int
    phase_step: int
    steps_per_epoch: int
    loss: Tensor | None = None
    epoch: int = 0
