"""DHSPG: dual half-space projected gradient, the optimizer of OTOv2.

Chen et al., OTOv2: Automatic, Generic, User-Friendly, ICLR 2023 (https://arxiv.org/abs/2303.06862).
All ZIGs are partitioned once into important and redundant ones. Only redundant ZIGs are penalised,
with a penalty chosen so that the step descends on both the loss and the norm, and projected to zero
until the target sparsity is reached. Units: channels. Target rule: `zeros`.

Differences from the authors' program, unless `faithful`: Adam's moments start at zero and are
bias-corrected; the test of the target is exact (theirs misses a target that is met exactly).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods._oto.row_method import RowConfig, RowMethod
from methods._oto.row_optimizer import DirectedRowOptimizer, Params
from pipeline.registry import register_method
from pipeline.training.phases import StepContext
from pipeline.training.recipe import Fraction, NonNegative, OptimizerConfig, Positive
from pipeline.units.rows import Rows

SMALL = 1e-8  # in x / (||x|| + SMALL)

VARIANTS: Mapping[str, tuple[float, float, float]] = {
    "sgd": (1e-3, 2.0, 10.0),
    "adam": (1e-2, 20.0, 1e3),
    "adamw": (1e-2, 20.0, 1e3),
}
"""Defaults of penalty, amplify and ceiling per variant, as in the authors' program."""


class DHSPGConfig(RowConfig):
    """Settings of DHSPG. The recipe's optimizer (sgd, adam, adamw) gives the direction.

    Attributes:
        target_group_sparsity: fraction of zero channels to reach.
        tolerance_group_sparsity: additional fraction of channels that are penalised.
        penalty: lambda, the weight of the group norms; none = the variant's default (see the card).
        amplify: A in docs/methods/dhspg.md, which raises the adaptive penalty; none = the variant's
            default.
        ceiling: C in docs/methods/dhspg.md, which bounds the adaptive penalty; none = the variant's
            default.
        epsilon: half-space parameter in [0, 1).
        start_epochs: epochs before the partition; none = `start_fraction` of all steps.
        start_fraction: fraction of all steps before the partition, if `start_epochs` is none.
        project_epochs: epochs before the projection begins; none = `project_fraction` of all steps,
            or, if that is none too, with the partition. The penalty adapts before projection too.
        project_fraction: fraction of all steps before the projection begins, if `project_epochs` is
            none.
        warmup_fraction: fraction of all steps before the penalty adapts and channels are projected.
        fixed_zero_groups: zero channels are permanently zero; false: only after projection begins.
        group_divisible: the number of channels kept in a group is a multiple of this.
        weight_decay_type: AdamW's decay along x (l2_norm) or x / ||x|| of each row (l1_norm).
        faithful: behave like the authors' program where it differs from the paper (see the card).
    """

    target_group_sparsity: Fraction = 0.5
    tolerance_group_sparsity: Fraction = 0.05
    penalty: NonNegative | None = None
    amplify: Positive | None = None
    ceiling: Annotated[float, Field(ge=1.0)] | None = None
    epsilon: Fraction = 0.0
    start_epochs: Annotated[int, Field(ge=0)] | None = None
    start_fraction: Fraction = 0.1
    project_epochs: Annotated[int, Field(ge=0)] | None = None
    project_fraction: Fraction | None = None
    warmup_fraction: Fraction = 0.0
    fixed_zero_groups: bool = True
    group_divisible: Annotated[int, Field(ge=1)] = 1
    weight_decay_type: Literal["l2_norm", "l1_norm"] = "l2_norm"
    faithful: bool = False

    added_later = ("project_epochs", "project_fraction", "fixed_zero_groups")


class DHSPG(DirectedRowOptimizer):
    """DHSPG over `rows`; parameters of `params` outside `rows` take plain steps."""

    def __init__(
        self, params: Params, rows: Rows, optimizer: OptimizerConfig, config: DHSPGConfig
    ) -> None:
        super().__init__(params, rows, optimizer, config.faithful)
        self.config = config
        penalty, amplify, ceiling = VARIANTS[optimizer.name]
        self.penalty = penalty if config.penalty is None else config.penalty
        self.amplify = amplify if config.amplify is None else config.amplify
        self.ceiling = ceiling if config.ceiling is None else config.ceiling
        self.units["penalized"] = torch.zeros_like(rows.entries, dtype=torch.bool)
        self.schedule(0, 0)

    def schedule(self, start_step: int, warmup_steps: int, project_step: int | None = None) -> None:
        """Set, in optimizer steps, when to partition, when penalties begin to adapt, and when
        projection begins (None: with the partition)."""
        project_step = start_step if project_step is None else project_step
        self.units.update(
            start_step=start_step, warmup_steps=warmup_steps, project_step=project_step
        )

    @property
    def _zeros_are_fixed(self) -> bool:
        return self.config.fixed_zero_groups or self.units["step"] > self.units["project_step"]

    def replay_key(self) -> Hashable | None:
        step, start = self.units["step"] + 1, self.units["start_step"]
        if self.counts_in_direction or step == start + 1:  # the partition
            return None
        since = step - self.units["project_step"]
        return step > start, step >= self.units["warmup_steps"], since >= 0, since > 0

    def stays_zero(self) -> Tensor | None:
        return torch.ones_like(self.rows.entries).bool() if self._zeros_are_fixed else None

    def step_rows(self, moves: list[Tensor]) -> None:
        """The plain step with the penalty on redundant channels, then their projection."""
        rows, lr, step = self.rows, self.row_setting("lr"), self.units["step"]
        start = self.units["start_step"]
        projected = torch.zeros_like(self.units["penalized"])
        square, *products = rows.gram(moves) if step > start else (rows.square_norms(),)
        norm, alive, decays = square.sqrt(), square != 0, self.row_decays()
        scale, by_row = torch.ones_like(norm), self.config.weight_decay_type == "l1_norm"
        along = 1.0 / (norm + SMALL) if decays and by_row else None
        if step > start:
            inner, slope = products
            if step == start + 1:
                self.units["penalized"] = self._partition(norm, inner, slope)
            pushed = self.units["penalized"] & self._short_of_target(alive)
            scale = scale - pushed * (lr * self._penalty(norm, inner, slope) / (norm + SMALL))
            if step >= max(self.units["warmup_steps"], self.units["project_step"]):
                pull = inner + self.decay_inner(square, decays, along)
                trial = scale * square - lr * pull
                projected = alive & pushed & (trial < self.config.epsilon * square)
        gone = ~alive | projected if self._zeros_are_fixed else projected
        keep = (~gone).to(norm.dtype)
        self.move_rows(moves, scale * keep, lr * keep, decays, along)

    def _short_of_target(self, alive: Tensor) -> Tensor:
        zeros, count, target = (~alive).sum(), self.rows.count, self.config.target_group_sparsity
        if self.config.faithful:
            return zeros.float() / (count + 6e-6) < target
        return zeros < math.ceil(target * count - 1e-9)

    def _penalty(self, norm: Tensor, inner: Tensor, slope: Tensor) -> Tensor:
        """lambda per channel: larger where the gradient alone would make the channel grow, yet
        small enough that the step still descends on the loss."""
        base = self.penalty
        if self.units["step"] < self.units["warmup_steps"]:
            return torch.full_like(norm, base)
        low, high = -inner / norm, -slope * norm / inner
        chosen = (self.amplify * low).clamp(base, self.ceiling * base)
        chosen = torch.where(chosen >= high, (low + high) / 2, chosen)
        return torch.where(inner < 0, chosen, base)

    def _partition(self, norm: Tensor, inner: Tensor, slope: Tensor) -> Tensor:
        """The redundant channels: small ones, and those that the gradient already shrinks."""
        rows, divisor = self.rows, self.config.group_divisible
        cosine = inner / (norm.clamp(min=1e-8) * slope.sqrt().clamp(min=1e-8))
        smallness = 1.0 / (norm / rows.entries + 1e-6)
        score = 0.5 * _unit(cosine) + 0.5 * _unit(smallness)
        fraction = min(
            self.config.target_group_sparsity + self.config.tolerance_group_sparsity, 0.999
        )
        kept = rows.rank(-score) >= int(rows.count * fraction)
        multiples = (rows.sum_groups(kept) / divisor).round().clamp(min=1)
        redundant = rows.rank_in_groups(score) >= (multiples * divisor)[rows.group_of]
        return redundant & (rows.group_size > divisor)[rows.group_of]


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)


@register_method("dhspg", DHSPGConfig)
class DHSPGMethod(RowMethod[DHSPGConfig, DHSPG]):
    """One phase; `after_backward` tells the optimizer when to partition and to project."""

    make = DHSPG

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        if self.stepped is None:
            return
        config, per_epoch = self.config, at.steps_per_epoch
        total = self.total_steps(at)
        asked = config.start_epochs
        start = int(config.start_fraction * total) if asked is None else asked * per_epoch
        project = None
        if config.project_epochs is not None:
            project = config.project_epochs * per_epoch
        elif config.project_fraction is not None:
            project = int(config.project_fraction * total)
        self.stepped.schedule(start, int(config.warmup_fraction * total), project)
