"""Gradual magnitude pruning: the sparsity rises along a cubic curve while the network trains.

Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
2017 (arXiv:1710.01878). After selected epochs the smallest weights of every layer are removed,
many at first and few towards the end, and training continues. Units: weights. Rule: `zeros`.

Differences from the paper: masks are updated between epochs, not every few hundred steps; a removed
weight is permanently zero (in the paper masked weights retain their value and may return).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.registry import register_method
from pipeline.selection.criteria import Allocation, keep_density
from pipeline.selection.masks import GradientMask, Masks, choose_weights, masked_magnitude
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Fraction, Recipe, Strict
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan


class GMPConfig(Strict):
    """The sparsity curve and the weights it applies to. Epochs count trained epochs.

    Attributes:
        initial_sparsity: s_i of the paper: fraction of the chosen weights removed at `begin_epoch`.
        final_sparsity: s_f of the paper: fraction of the chosen weights removed at the end.
        begin_epoch: epoch at which the curve begins.
        end_epoch: epoch at which it reaches `final_sparsity`; none = three quarters of the recipe's
            epochs.
        frequency: epochs between two updates of the mask; `end_epoch` always updates it.
        allocation: uniform gives each layer the same sparsity, as in the paper; global ranks all
            layers together; erk gives Erdos-Renyi-kernel densities.
        layers: conv prunes convolutions only; all prunes linear layers too.
        ignore: names of layers to leave dense.
    """

    initial_sparsity: Fraction = 0.0
    final_sparsity: Fraction = 0.9
    begin_epoch: Annotated[int, Field(ge=0)] = 0
    end_epoch: Annotated[int, Field(ge=1)] | None = None
    frequency: Annotated[int, Field(ge=1)] = 1
    allocation: Allocation = "uniform"
    layers: Literal["conv", "all"] = "all"
    ignore: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> GMPConfig:
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"initial_sparsity: {self.initial_sparsity} is above final_sparsity: "
                f"{self.final_sparsity}"
            )
        if self.end_epoch is not None and self.end_epoch <= self.begin_epoch:
            raise ValueError(
                f"end_epoch: {self.end_epoch} is not after begin_epoch: {self.begin_epoch}"
            )
        return self

    def last_update(self, epochs: int) -> int:
        """Trained epochs at which the final sparsity is reached, in a training of `epochs`."""
        if self.end_epoch is not None:
            return self.end_epoch
        return max(self.begin_epoch + 1, 3 * epochs // 4)


def cubic_sparsity(progress: float, initial: float, final: float) -> float:
    """s_f + (s_i - s_f)(1 - p)^3 at the fraction p of the curve, clipped to [0, 1] (equation 1)."""
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return final + (initial - final) * left**3


@register_method("gmp", GMPConfig)
class GMP(MethodBase):
    """One phase with a mask that `end_epoch` tightens."""

    granularity = Granularity.UNSTRUCTURED

    def __init__(self, config: GMPConfig) -> None:
        self.config = config
        self.parameters: dict[str, nn.Parameter] = {}
        self.keep: dict[str, Tensor] = {}
        self.end = 0  # trained epochs at the last update
        self._plan: PruningPlan | None = None

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        """
        Raises:
            ValueError: the training ends before the curve does.
        """
        end = self.config.last_update(recipe.epochs)
        if end > recipe.epochs:
            raise ValueError(
                f"methods.gmp: the final sparsity is reached after {end} epochs and train.epochs "
                f"is {recipe.epochs}; lower methods.gmp.begin_epoch or end_epoch"
            )
        return (Phase("train", recipe.epochs),)

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        self.parameters = dict(model.named_parameters())
        names = choose_weights(model, units, self.config.layers, self.config.ignore)
        self._set({n: torch.ones_like(self.parameters[n], dtype=torch.bool) for n in names})
        if self.config.begin_epoch == 0:
            self._tighten(self.config.initial_sparsity)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        self.end = self.config.last_update(recipe.epochs)
        return super().optimizer(model, phase, recipe)

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        self._gradient_mask.apply()

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        begin, trained = self.config.begin_epoch, stats.epoch + 1
        due = (trained - begin) % self.config.frequency == 0 or trained == self.end
        if begin <= trained <= self.end and due:
            progress = (trained - begin) / (self.end - begin)
            initial, final = self.config.initial_sparsity, self.config.final_sparsity
            self._tighten(cubic_sparsity(progress, initial, final))
        kept = sum(int(mask.sum()) for mask in self.keep.values())
        stats.logged["weight_sparsity"] = 1.0 - kept / sum(m.numel() for m in self.keep.values())
        return False

    @torch.no_grad()
    def _tighten(self, sparsity: float) -> None:
        magnitude = {name: self.parameters[name].detach().abs() for name in self.keep}
        self._set(keep_density(magnitude, self.keep, 1.0 - sparsity, self.config.allocation))

    def _set(self, keep: Masks) -> None:
        self.keep = dict(keep)
        dense = all(bool(mask.all()) for mask in keep.values())
        self._plan = None if dense else PruningPlan(self.granularity, self.keep)
        self._gradient_mask = GradientMask(self.parameters, self.keep)

    def plan(self) -> PruningPlan | None:
        return self._plan

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """|w| of kept weights, 0 for removed ones."""
        return masked_magnitude(model, units, self.keep)

    def state_dict(self) -> dict[str, Any]:
        return {"keep": dict(self.keep)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._set({n: m.to(self.parameters[n].device) for n, m in state["keep"].items()})
