"""HESSO: hybrid efficient structured sparse optimizer, the successor of DHSPG in OTO.

Chen et al., HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and
Pruning, 2024 (https://arxiv.org/abs/2409.09085). In each of a few periods the channels with the
lowest scores are declared redundant and shrunk linearly to zero while all others train as usual.
There is no regulariser and no half-space projection; the target count is met by construction.
Units: channels. Target rule: `zeros`.

Differences from the authors' program, unless `faithful`: if there are too many candidates, those
with the lowest scores are pruned (theirs: the lowest positions); channels shared through a concat's
BatchNorm are scored and zeroed with their group (theirs are zeroed before their own gradient step,
which makes them nonzero again); Adam's moments start at zero. In both modes a group keeps at least
`group_divisible` channels.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods._oto.redundancy import CRITERIA, Criterion, Quota, redundancy
from methods._oto.row_method import RowConfig, RowMethod
from methods._oto.row_optimizer import DirectedRowOptimizer, Params
from pipeline.registry import register_method
from pipeline.training.phases import StepContext
from pipeline.training.recipe import Fraction, NonNegative, OptimizerConfig
from pipeline.units.rows import Rows


class HESSOConfig(RowConfig):
    """Settings of HESSO. The recipe's optimizer (sgd, adam, adamw) gives the direction.

    Attributes:
        target_group_sparsity: fraction of zero channels after the last period.
        start_fraction: fraction of all steps before pruning begins.
        pruning_fraction: fraction of all steps that pruning lasts.
        periods: number of equal parts into which pruning is divided.
        group_divisible: the number of channels kept in a group is a multiple of this; groups that
            are not larger are not pruned.
        criteria: weights of the scores by name; low score = redundant.
        faithful: behave like the authors' program where it differs from the paper (see the card).
    """

    target_group_sparsity: Fraction = 0.5
    start_fraction: Fraction = 0.1
    pruning_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    periods: Annotated[int, Field(ge=1)] = 10
    group_divisible: Annotated[int, Field(ge=1)] = 1
    criteria: dict[Criterion, NonNegative] = Field(default_factory=lambda: dict(CRITERIA))
    faithful: bool = False

    @model_validator(mode="after")
    def _possible(self) -> HESSOConfig:
        if not any(self.criteria.values()):
            raise ValueError("criteria: all weights are 0")
        if self.start_fraction + self.pruning_fraction > 1:
            raise ValueError("start_fraction + pruning_fraction is more than the whole training")
        return self


class HESSO(DirectedRowOptimizer):
    """HESSO over `rows`; parameters of `params` outside `rows` take plain steps."""

    def __init__(
        self, params: Params, rows: Rows, optimizer: OptimizerConfig, config: HESSOConfig
    ) -> None:
        super().__init__(params, rows, optimizer, config.faithful)
        self.config = config
        self._scored = rows.own() if config.faithful else rows
        self._quota = Quota(rows, config.target_group_sparsity, config.group_divisible)
        nothing = torch.zeros_like(rows.entries, dtype=torch.bool)
        self.units.update(pruned=nothing, redundant=nothing.clone(), period=0)
        if config.faithful:
            self.units["drawn"] = nothing.clone()  # candidates so far, spared ones included
        self.schedule(0, 1)

    def schedule(self, start_step: int, pruning_steps: int) -> None:
        """Set when the first period begins and how long all periods last, in optimizer steps."""
        periods = min(self.config.periods, pruning_steps)
        self.units.update(start_step=start_step, length=pruning_steps // periods, periods=periods)

    def replay_key(self) -> Hashable | None:
        since = self.units["step"] + 1 - self.units["start_step"]
        end = self.units["periods"] * self.units["length"]
        if self.counts_in_direction or 0 <= since <= end:  # the factor changes every step
            return None
        return "before" if since < 0 else "after"

    def stays_zero(self) -> Tensor | None:
        return None if self.config.faithful else self.units["pruned"]

    def step_rows(self, moves: list[Tensor]) -> None:
        """The plain step, then the linear shrink of the redundant channels."""
        since = self.units["step"] - self.units["start_step"]
        length = self.units["length"]
        begins = since >= 0 and (since - 1) % length == 0
        if begins and self.units["period"] < self.units["periods"]:
            self._begin_period(moves)
        lr, at = self.row_setting("lr"), since % length
        pruned, redundant = self.units["pruned"], self.units["redundant"]
        factor = torch.ones(self.rows.count, dtype=self.rows.dtype, device=pruned.device)
        factor.masked_fill_(redundant, (length - at - 1) / (length - at)).masked_fill_(pruned, 0.0)
        if self.config.faithful and any(self.rows.shared):
            self._move_faithfully(moves, factor)
        else:
            self.move_rows(moves, factor, lr * factor, self.row_decays())
        if at == length - 1:
            self._commit()

    def _commit(self) -> None:
        self.units["pruned"].logical_or_(
            self.units["redundant"]
        )  # in place: a captured graph reads them
        self.units["redundant"].zero_()

    def _begin_period(self, moves: list[Tensor]) -> None:
        self._commit()
        period = self.units["period"] = self.units["period"] + 1
        periods = self.units["periods"]
        goal = self._quota.goal
        each = goal // periods
        quota = goal if period == periods else period * each
        scores, pruned = self.scores(moves), self.units["pruned"]
        if self.config.faithful:
            chosen = self._first_in_order(scores, quota - (period - 1) * each)
            scores = torch.arange(len(scores)).to(scores)  # so a group spares its last candidates
        else:
            chosen = self._quota.lowest(scores, quota, pruned)
        self.units["redundant"] = self._quota.multiples(chosen, scores, pruned)

    def scores(self, moves: list[Tensor]) -> Tensor:
        """Score per channel; parameters shared by several groups count unless `faithful`."""
        rows = self._scored
        place = {id(p): v for p, v in zip(self.rows.params, moves, strict=True)}
        return redundancy(rows, [place[id(p)] for p in rows.params], self.config.criteria)

    def _first_in_order(self, scores: Tensor, number: int) -> Tensor:
        """The authors' candidates: among the (drawn + number) lowest scores, the first `number` by
        position that were never drawn. A candidate that its group spares is not drawn again."""
        drawn, free = self.units["drawn"], self._quota.free
        rank = self.rows.rank(scores.masked_fill(~free, torch.inf))
        low = (rank < drawn.sum() + number) & ~drawn & free
        chosen = low & (low.cumsum(0) <= number)
        self.units["drawn"] = drawn | chosen
        return chosen

    def _move_faithfully(self, moves: list[Tensor], factor: Tensor) -> None:
        """The authors' order: shared parameters shrink first, once per parameter of their group.

        Then they take their own step, with AdamW's decay applied to the shrunk weight.
        """
        rows, lr = self.rows, self.row_setting("lr")
        power = factor ** self._scored.parameters_of[rows.group_of]
        own, late = rows.spread(factor, 1.0), rows.spread(power, 1.0)
        pulls = rows.spread(lr * factor, lr)
        decays = self.row_decays() or [0.0] * len(rows.params)
        for i, (p, decay) in enumerate(zip(rows.params, decays, strict=True)):
            if rows.shared[i]:
                p.mul_(late[i]).mul_(1.0 - lr * decay).add_(moves[i], alpha=-lr)
            else:
                p.mul_(own[i] - decay * pulls[i]).addcmul_(moves[i], pulls[i], value=-1.0)


@register_method("hesso", HESSOConfig)
class HESSOMethod(RowMethod[HESSOConfig, HESSO]):
    """One phase; `after_backward` tells the optimizer when its periods are."""

    make = HESSO

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        if self.stepped is None:
            return
        total = self.total_steps(at)
        start = int(self.config.start_fraction * total)
        length = int(self.config.pruning_fraction * total)
        self.stepped.schedule(start, max(length, 1))
