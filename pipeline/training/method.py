"""The `Method` interface: how a pruning method takes part in training.

The loop (`pipeline/training/loop/fit.py`) owns weights, snapshots, masks, schedules and
checkpoints. A method defines the phases, the optimizer, a penalty on the loss and the saliency of
each unit. It never prunes; the pipeline does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.selection.saliency import magnitude
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.training.schedules import Schedule, make_optimizer, make_schedule
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan


class Batches(Protocol):
    """Training batches of epoch 0, repeatable, and the task's mean loss on one."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor: ...


class Method(Protocol):
    """What the loop and the prune stage call on a pruning method."""

    granularity: Granularity
    needs_loss: bool

    def extendable(self) -> tuple[str, ...]: ...
    def states(self) -> tuple[str, ...]: ...
    def phases(self, recipe: Recipe) -> Sequence[Phase]: ...
    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None: ...
    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer: ...
    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule: ...
    def penalty(self, model: nn.Module) -> Tensor | None: ...
    def after_backward(self, model: nn.Module, at: StepContext) -> None: ...
    def after_step(self, model: nn.Module, at: StepContext) -> None: ...
    def replay_key(self, at: StepContext) -> Hashable | None: ...
    def replayed(self) -> None: ...
    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool: ...
    def end_phase(self, model: nn.Module, phase: Phase) -> None: ...
    def plan(self) -> PruningPlan | None: ...
    def permanently_zero(self, model: nn.Module) -> PruningPlan | None: ...
    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]: ...
    def release(self, model: nn.Module) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class MethodBase:
    """Defaults: train densely with the recipe's optimizer and schedule, prune nothing.

    Subclasses override the hooks that their paper needs. Shared algorithms are functions, not base
    classes.
    """

    granularity = Granularity.UNSTRUCTURED
    needs_loss = False

    def extendable(self) -> tuple[str, ...]:
        """Settings that only add phases at the end when raised. A longer training then resumes
        where the shorter one ended."""
        return ()

    def states(self) -> tuple[str, ...]:
        """Names of states that `end_epoch` may snapshot, besides phases and those of the recipe."""
        return ()

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """The parts of the training, in order."""
        return (Phase("train", recipe.epochs),)

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        """Called on the training device before the first step, and again on resume before the
        state is loaded. Attach gates, move weights into the feasible set, store `units`.
        `batches` are training batches of epoch 0 and their loss, for data-dependent
        initialisation."""

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        """A new optimizer for `phase`. Its param groups hold what a step needs besides gradients;
        its `state` holds what it remembers."""
        return make_optimizer(model, recipe)

    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule:
        """The learning-rate schedule of `phase`, stepped at the end of every epoch."""
        return make_schedule(optimizer, recipe, start_epoch=phase.lr_epoch)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the task's loss, or None."""
        return None

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        """May edit gradients. Gradient clipping follows."""

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        """May edit weights (clamp, project). The loop then enforces `plan()`."""

    def replay_key(self, at: StepContext) -> Hashable | None:
        """What Python decides in the next step, for `train.cuda_graph`. Within an epoch, steps with
        equal keys call the same operators with the same numbers on the same tensors, so one may be
        replayed for another, without the hooks. None: this step must not be replayed."""
        return ()

    def replayed(self) -> None:
        """Called after a replayed step, which skipped the hooks. Update step counts kept in
        Python."""

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        """Return True to end the phase. May tighten `plan()`; the loop enforces it at once."""
        return False

    def end_phase(self, model: nn.Module, phase: Phase) -> None:
        """Called with the trained weights of the phase, e.g. to tighten a mask."""

    def plan(self) -> PruningPlan | None:
        """The current masks, which the loop applies to the weights."""
        return None

    def permanently_zero(self, model: nn.Module) -> PruningPlan | None:
        """For `train.compact`: a structured plan that removes the channels that stay zero until the
        end of the phase, whatever their gradient. Called between epochs."""
        return None

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """Score per unit, >= 0, higher = keep; 0 = already removed by training. Keys are
        `units.weights` (shape of the weight) or names of prunable groups (shape (size,))."""
        return magnitude(model, units)

    def release(self, model: nn.Module) -> None:
        """Restore a plain model: remove hooks and gates, reset `requires_grad`."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume and to compute `saliency` later: a tree of dicts, lists,
        numbers, strings and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. Always called after `prepare`, when parameters, units and
        devices are known. Tensors of `state` come from a file and may be on another device."""
