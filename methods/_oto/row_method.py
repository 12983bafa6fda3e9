"""What the methods with a row-wise optimizer have in common: the adapter to the loop."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from torch import Tensor, nn

from methods._oto.row_optimizer import RowOptimizer
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import EpochStats, StepContext
from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.layers import GroupScope, in_scope
from pipeline.units.plan import PruningPlan
from pipeline.units.rows import Rows, named_parameters, zig_norms

Stepped = TypeVar("Stepped", bound=RowOptimizer)


class RowMethod(MethodBase, Generic[Stepped]):
    """Trains with an optimizer that brings channels of the groups in `scope` to zero.

    Subclasses make the optimizer, remember it as `stepped` and the recipe's `epochs`. Groups out of
    scope have no score and stay whole.
    """

    granularity = Granularity.STRUCTURED

    def __init__(self, scope: GroupScope) -> None:
        self._scope = scope
        self._groups: tuple[ChannelGroup, ...] = ()
        self.stepped: Stepped | None = None
        self.epochs = 0  # of the whole training

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        """
        Raises:
            ValueError: no prunable group is in scope.
        """
        del batches
        self._groups = in_scope(units.prunable, model, self._scope)
        if units.prunable and not self._groups:
            raise ValueError(
                f"groups: {self._scope}: none of the {len(units.prunable)} prunable channel groups "
                "is made by one layer and read by one; set groups: all in the method's block of "
                "params.yaml"
            )

    def rows(self, model: nn.Module) -> Rows:
        """The channels to treat, as the optimizers take them."""
        return Rows(named_parameters(model), self._groups)

    def total_steps(self, at: StepContext) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * at.steps_per_epoch

    def replay_key(self, at: StepContext) -> Hashable | None:
        del at
        return None if self.stepped is None else self.stepped.replay_key()

    def replayed(self) -> None:
        if self.stepped is not None:
            self.stepped.count()

    def settled(self, model: nn.Module) -> PruningPlan | None:
        stays = None if self.stepped is None else self.stepped.stays_zero()
        if self.stepped is None or stays is None or not len(stays):
            return None
        norms = zig_norms(model, self.stepped.rows.groups)  # frozen parts have to be zero, too
        stay = self.stepped.rows.split(stays)
        keep = {name: (norm != 0) | ~stay[name] for name, norm in norms.items()}
        return PruningPlan(Granularity.STRUCTURED, keep)

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        del model
        if self.stepped is not None:
            stats.logged.update(self.stepped.rows.summary())
        return False

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        return zig_norms(model, in_scope(units.prunable, model, self._scope))

    def release(self, model: nn.Module) -> None:
        del model
        self.stepped = None
