"""Where a training is: its phases, its epochs, its steps."""

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
        lr_epoch: epoch of the recipe's learning-rate schedule at which the phase begins; a phase
            that continues a schedule starts where the one before stopped, a rewound one at k.
        keep: True = the state at the end of this phase is a named artefact (an IMP level).
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
        train: mean training loss and scores of the epoch; `last_loss` is the last batch's.
        validation: scores on the validation split, empty when there is none.
        logged: a hook may add its own numbers here; they are tracked as `<method>/<key>`.
        keep: a hook may ask to keep the state after this epoch, under a name of `Method.states`.
    """

    epoch: int
    phase_epoch: int
    train: Mapping[str, float]
    validation: Mapping[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)

    def values(self) -> dict[str, float]:
        """All of it by the names it is tracked under."""
        row = {f"train/{k}": v for k, v in self.train.items() if k != "last_loss"}
        row |= {f"validation/{k}": v for k, v in self.validation.items()}
        return row | {k if "/" in k else f"method/{k}": float(v) for k, v in self.logged.items()}


@dataclass(frozen=True)
class StepContext:
    """Where the loop is; given to the per-step hooks. `step` counts optimizer steps of the whole
    training, `phase_step` those of the phase, `epoch` epochs of the whole training, all 0-based;
    `steps_per_epoch` is constant. `loss`: mean task loss of the batch, for methods that say
    `needs_loss`."""

    phase: Phase
    step: int
    phase_step: int
    steps_per_epoch: int
    loss: Tensor | None = None
    epoch: int = 0
