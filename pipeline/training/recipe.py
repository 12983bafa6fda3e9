"""The training recipe: everything about how a network is trained that is not the method."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Strict(BaseModel):
    """A frozen block of params.yaml that refuses unknown keys.

    `added_later` names fields that are omitted at their default, so that the hashes of records
    published before they existed stay valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    added_later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {k for k in self.added_later if getattr(self, k) == fields[k].default}
        return {key: value for key, value in standard(self).items() if key not in unset}


class OptimizerConfig(Strict):
    """A torch optimizer and its settings.

    Attributes:
        name: the optimizer, as torch implements it.
        lr: learning rate; the schedule starts from it or ends its warm-up there.
        weight_decay: weight of the L2 penalty, whose gradient is added; adamw decays the weights
            directly.
        momentum: sgd: weight of the old average of gradients.
        nesterov: sgd: Nesterov's momentum.
        betas: adam, adamw: decay of the averages of the gradient and of its square.
        fused: use torch's fused kernels, which take a third of the time on small networks. Adam and
            AdamW then round differently, so the resulting bits differ.
    """

    added_later = ("fused",)

    name: Literal["sgd", "adam", "adamw", "adadelta"] = "sgd"
    lr: Positive = 0.1
    weight_decay: NonNegative = 1e-4
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    decay_norm_and_bias: bool = True
    """False: weight decay on convolution and linear weights only (depthwise ones excepted)."""
    fused: bool = False

    @model_validator(mode="after")
    def _can_fuse(self) -> OptimizerConfig:
        if self.fused and self.name == "adadelta":
            raise ValueError("fused: true: torch has no fused adadelta; set fused: false")
        return self


class ScheduleConfig(Strict):
    """Learning rate by epoch, stepped at the end of the epoch.

    Attributes:
        name: constant; step (x gamma every `step_size`); multistep (x gamma at `milestones`);
            cosine (to `min_lr` at the last epoch); warm_restarts (cosine, again and again); cyclic
            (triangular between `min_lr` and lr); plateau (x gamma when the validation loss stalls);
            linear (at every step; up to lr, then down to `min_lr` at the last step).
        milestones: multistep: epochs after which the rate is multiplied by gamma.
        gamma: step, multistep, plateau: factor of a decrease.
        step_size: step: epochs between two decreases.
        min_lr: cosine, warm_restarts, cyclic, plateau, linear: the lowest rate.
        period: warm_restarts: epochs until the first restart.
        period_factor: warm_restarts: each period is this many times as long as the one before.
        step_up: cyclic: epochs of the rise from `min_lr` to lr.
        step_down: cyclic: epochs of the fall back.
        patience: plateau: epochs without a better validation loss before a decrease.
        lr_warmup: epochs of linear warm-up at the start.
        warmup_fraction: linear: fraction of all steps of the rise to lr.
    """

    name: Literal[
        "constant", "step", "multistep", "cosine", "warm_restarts", "cyclic", "plateau", "linear"
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
    warmup_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase: {list(self.milestones)}")
        return self


class Recipe(Strict):
    """How a network is trained.

    - `epochs`: passes over the training split.
    - `label_smoothing`: probability that is spread evenly over all classes; 0 = off.
    - `channels_last`: store images with the channels last in memory, which some devices compute
      faster; the numbers differ by rounding.
    - `compile`: compile the network with torch.compile; the numbers differ by rounding.
    - `batch_size`: examples in the whole batch, over all processes.
    - `mixup`: alpha of the Beta distribution that weighs two images of a blend
      (options/mixup.py); 0 = off. Images only.
    - `precision`: fp32, or bf16 autocast.
    - `clip_norm`: largest gradient norm over all parameters; None = no clipping.
    - `accumulation`: number of pieces a batch is split into. Their gradients add up to the same
      step, with less memory.
    - `rewind_epoch`, `rewind_step`: snapshot the weights after this many epochs or optimizer steps
      as "rewind". A phase that starts from a step inside an epoch first finishes that epoch, at
      that epoch's learning rate.
    - `checkpoint_steps`: also checkpoint after every this many steps inside an epoch; 0 = only at
      the end of an epoch.
    - `sync_batchnorm`: with several processes, BatchNorm uses the whole batch instead of the
      process's part (GPU only).
    - `data_seed`: order and augmentation of the batches; None = the seed of the training. Two
      trainings of one seed and two data seeds share their initial weights.
    - `keep_epochs`: snapshot the states after these numbers of epochs of the whole training as
      "epoch-<e>".
    - `keep_best`: snapshot the state with the best validation score as "best", the best of the
      first e epochs, for each e in `keep_epochs`, as "best-<e>", and the best of every phase that
      is snapshotted as "best-<phase>".
    - `cuda_graph`: capture one step as a CUDA graph and replay it (options/cuda_graph.py). The
      training is the same, and the GPU does not wait for Python.
    - `compact`: skip permanently zero channels in forward and backward passes
      (options/compact.py). The training is the same up to rounding, unless dropout follows such
      channels.
    - `ema_decay`: decay of an exponential moving average of the weights (options/ema.py); 0 = off.
      A training snapshots the average as "ema" and delivers the weights themselves; a retraining
      delivers the average.
    - `steps`: length in optimizer steps; the last epoch of the schedule ends there. `epochs` must
      be the number of epochs that this takes. Every phase that runs to the end of the schedule,
      such as a round of imp, is shortened in the same way.
    - `evaluate_steps`: also validate after every this many optimizer steps of a phase; 0 = off.
      Snapshot the state with the lowest validation loss as "early-stop", and that of every phase
      that is snapshotted as "early-stop-<phase>".
    - `flush_denormal`: take numbers below 1.2e-38 as zeros on the CPU, where they make steps many
      times slower once a small network fits its training images (options/denormal.py).

    A retraining inherits neither `steps` nor `evaluate_steps`: it counts epochs unless its own
    `finetune.train` names steps. With `evaluate_steps` its test scores at the early stop are
    measured beside those at its end.
    """

    added_later = (
        *("keep_epochs", "keep_best", "mixup", "ema_decay", "cuda_graph", "compact"),
        *("steps", "evaluate_steps", "flush_denormal"),
    )

    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: Fraction = 0.0
    mixup: NonNegative = 0.0
    clip_norm: Positive | None = None
    accumulation: Annotated[int, Field(ge=1)] = 1
    rewind_epoch: Annotated[int, Field(ge=0)] = 0
    rewind_step: Annotated[int, Field(ge=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    data_seed: Annotated[int, Field(ge=0)] | None = None
    sync_batchnorm: bool = False
    keep_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    keep_best: bool = False
    ema_decay: Fraction = 0.0
    cuda_graph: bool = False
    compact: bool = False
    steps: Annotated[int, Field(ge=1)] | None = None
    evaluate_steps: Annotated[int, Field(ge=0)] = 0
    flush_denormal: bool = False

    @model_validator(mode="after")
    def _one_rewind(self) -> Recipe:
        if self.rewind_step is not None and self.rewind_epoch:
            raise ValueError(
                f"rewind_step: {self.rewind_step} and rewind_epoch: {self.rewind_epoch} exclude "
                "each other; set rewind_epoch: 0"
            )
        return self

    @model_validator(mode="after")
    def _can_replay(self) -> Recipe:
        if self.cuda_graph and self.schedule.name == "linear":
            raise ValueError(
                "cuda_graph: true replays steps of one learning rate, and schedule: linear has "
                "another one in every step; set cuda_graph: false"
            )
        return self

    @model_validator(mode="after")
    def _not_compact_and_compiled(self) -> Recipe:
        if self.compact and self.compile:
            raise ValueError(
                "compact: true gives the network other shapes after every epoch, and compile: true "
                "would compile each of them; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _keep_in_order(self) -> Recipe:
        if list(self.keep_epochs) != sorted(set(self.keep_epochs)):
            raise ValueError(f"keep_epochs must increase: {list(self.keep_epochs)}")
        return self

    def stretched(self, factor: float) -> Recipe:
        """The recipe with `factor` times the epochs. Milestones, step sizes and the horizon of a
        cosine scale in proportion; the warm-up keeps its length."""
        schedule = self.schedule.model_copy(
            update={
                "milestones": tuple(round(factor * m) for m in self.schedule.milestones),
                "step_size": max(1, round(factor * self.schedule.step_size)),
            }
        )
        epochs = round(factor * self.epochs)
        return self.model_copy(update={"epochs": epochs, "schedule": schedule})

    def last_epoch_steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps in the last epoch of the schedule, which `steps` may shorten.

        Raises:
            ValueError: `steps` does not end in the last epoch; says how many epochs are needed.
        """
        if self.steps is None:
            return steps_per_epoch
        epochs = -(-self.steps // steps_per_epoch)
        if epochs != self.epochs:
            raise ValueError(
                f"train.steps: {self.steps} takes {epochs} epochs of {steps_per_epoch} steps, and "
                f"train.epochs is {self.epochs}; set train.epochs: {epochs}"
            )
        return self.steps - (epochs - 1) * steps_per_epoch

    def placed(self, steps_per_epoch: int) -> Recipe:
        """The recipe with `rewind_epoch` = the number of whole epochs before `rewind_step`, since
        methods count in epochs. The first epoch after a rewind is then the rest of that epoch."""
        if self.rewind_step is None:
            return self
        return self.model_copy(update={"rewind_epoch": self.rewind_step // steps_per_epoch})
