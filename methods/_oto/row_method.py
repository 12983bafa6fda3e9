"""Base class of the methods with a row-wise optimizer; adapts the optimizer to the loop."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from methods._oto.row_optimizer import RowOptimizer
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Recipe, Strict
from pipeline.training.schedules import parameter_groups
from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.layers import GroupScope, in_scope
from pipeline.units.plan import PruningPlan
from pipeline.units.rows import Rows, named_parameters, zig_norms


class RowConfig(Strict):
    """Settings of every method with a row-wise optimizer.

    Attributes:
        groups: channel groups to prune. all: every prunable group; inner: only channels that one
            layer produces and one layer reads, hence never a residual stream (the authors' scope on
            ImageNet).
    """

    groups: GroupScope = "all"


Config = TypeVar("Config", bound=RowConfig)
Stepped = TypeVar("Stepped", bound=RowOptimizer)


class RowMethod(MethodBase, Generic[Config, Stepped]):
    """Trains with an optimizer that drives channels of the groups in scope to zero.

    `make(params, rows, recipe.optimizer, config)` builds the optimizer. Groups out of scope have
    no score and are not pruned.
    """

    granularity = Granularity.STRUCTURED
    make: ClassVar[Any]

    def __init__(self, config: Config) -> None:
        self.config = config
        self._groups: tuple[ChannelGroup, ...] = ()
        self.stepped: Stepped | None = None
        self.epochs = 0  # of the whole training

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        """
        Raises:
            ValueError: no prunable group is in scope.
        """
        del batches
        self._groups = in_scope(units.channels, model, self.config.groups)
        if units.channels and not self._groups:
            raise ValueError(
                f"groups: {self.config.groups}: none of the {len(units.channels)} prunable channel "
                "groups is made by one layer and read by one; set groups: all in the method's "
                "block of params.yaml"
            )

    def rows(self, model: nn.Module) -> Rows:
        """The channels in scope, in the form that the optimizers take."""
        return Rows(named_parameters(model), self._groups)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        self.epochs = recipe.epochs
        params = parameter_groups(model, recipe.optimizer)
        stepped: Stepped = self.make(params, self.rows(model), recipe.optimizer, self.config)
        self.stepped = stepped
        return stepped

    def total_steps(self, at: StepContext) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * at.steps_per_epoch

    def replay_key(self, at: StepContext) -> Hashable | None:
        del at
        return None if self.stepped is None else self.stepped.replay_key()

    def replayed(self) -> None:
        if self.stepped is not None:
            self.stepped.count()

    def permanently_zero(self, model: nn.Module) -> PruningPlan | None:
        stays = None if self.stepped is None else self.stepped.stays_zero()
        if self.stepped is None or stays is None or not len(stays):
            return None
        norms = zig_norms(model, self.stepped.rows.groups)  # frozen parts must be zero as well
        stay = self.stepped.rows.split(stays)
        keep = {name: (norm != 0) | ~stay[name] for name, norm in norms.items()}
        return PruningPlan(Granularity.STRUCTURED, keep)

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        del model
        if self.stepped is not None:
            stats.logged.update(self.stepped.rows.summary())
        return False

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        return zig_norms(model, in_scope(units.channels, model, self.config.groups))

    def release(self, model: nn.Module) -> None:
        del model
        self.stepped = None
