"""The training recipe: everything about how a network is trained that is not the method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Strict(BaseModel):
    """A frozen block of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(Strict):
    """Which torch optimizer, and its numbers. `lr` and `weight_decay` hold for all of them."""

    name: Literal["sgd", "adam", "adamw", "adadelta"] = "sgd"
    lr: Positive = 0.1
    weight_decay: NonNegative = 1e-4
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    decay_norm_and_bias: bool = True
    """False: weight decay on convolution and linear weights only (depthwise ones excepted)."""


class ScheduleConfig(Strict):
    """Learning rate by epoch, stepped at the end of the epoch.

    constant; step (x gamma every `step_size`); multistep (x gamma at `milestones`); cosine (to
    `min_lr` at the last epoch); warm_restarts (period `period`, times `period_factor`); cyclic
    (triangular between `min_lr` and lr: `step_up`, `step_down` epochs); plateau (x gamma after
    `patience` epochs without a better validation loss, not below `min_lr`).
    `lr_warmup` epochs of linear warm-up come first.
    """

    name: Literal[
        "constant", "step", "multistep", "cosine", "warm_restarts", "cyclic", "plateau"
    ] = "multistep"
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    gamma: Positive = 0.1
    step_size: Annotated[int, Field(ge=1)] = 1
    min_lr: NonNegative = 0.0
    period: Annotated[int, Field(ge=1)] = 5
    period_factor: Annotated[int, Field(ge=1)] = 2
    step_up: Annotated[int, Field(ge=1)] = 5
    step_down: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=0)] = 10
    lr_warmup: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase: {list(self.milestones)}")
        return self


class Recipe(Strict):
    """How a network is trained.

    `precision`: fp32, or bf16 autocast. `clip_norm`: largest gradient norm over all parameters,
    None = no clipping. `rewind_epoch`: the weights after this many epochs are kept as "rewind".
    `checkpoint_steps`: also checkpoint every so many steps inside an epoch, 0 = at its end only.
    """

    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: Fraction = 0.0
    clip_norm: Positive | None = None
    rewind_epoch: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
