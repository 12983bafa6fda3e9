"""HESSO-CRIC: HESSO that tries its choice out before it removes anything.

Chen et al., HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and
Pruning, 2024 (https://arxiv.org/abs/2409.09085). A score taken at the present weights says little
about weights at zero, so a choice by score alone may take indispensable channels. The Corrective
Redundant Identification Cycle walks the chosen channels to zero, samples all scores on the way,
goes back and walks the ones that had looked safe before; the mean of all samples decides. Before,
short trials per group add what the loss says. Then the channels shrink linearly as in HESSO. Units:
channels. Target rule: `zeros`.

Deliberate deviations, all in docs/methods/hesso_cric.md: the loss term counts the excess over the
loss before the trial, not divided by the trial's size; short trainings make fewer trials and
cycles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from methods._oto.directions import DirectionOptions, direction_options
from methods._oto.redundancy import CRITERIA, Criterion, Quota, redundancy
from methods._oto.row_method import RowMethod
from methods._oto.row_optimizer import DirectedRowOptimizer, Params
from pipeline.registry import register_method
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Fraction, NonNegative, Recipe, Strict
from pipeline.training.schedules import parameter_groups
from pipeline.units.layers import GroupScope
from pipeline.units.rows import Rows

TRIALS = (0.5, 0.25, 0.75)
"""Fractions of a group that its trials set to zero, in the order in which time allows them."""

AnyCriterion = Criterion | Literal["loss"]
WEIGHTS: Mapping[AnyCriterion, float] = MappingProxyType(
    dict[AnyCriterion, float]([*CRITERIA.items(), ("loss", 1.0)])
)
"""All criteria with the authors' weights."""


@dataclass(frozen=True)
class Timetable:
    """When what happens, in optimizer steps.

    Attributes:
        start_step: steps of plain training before the choice begins.
        trials: how many of `TRIALS` every group goes through, two steps each.
        cycles: at most so many of `sampling_steps` each.
        hybrid_steps: length of the final shrink.
    """

    start_step: int = 0
    trials: int = len(TRIALS)
    cycles: int = 10
    sampling_steps: int = 10
    hybrid_steps: int = 1


@dataclass(frozen=True)
class HESSOCRICOptions:
    """The numbers of HESSO-CRIC.

    Attributes:
        target: group sparsity to reach.
        tolerance: the cycles stop when no more channels than this are new among the lowest.
        group_divisible: channels kept in a group are a multiple of this; groups that are not
            larger stay whole.
        criteria: weights of the scores; low score = redundant.
    """

    direction: DirectionOptions = field(default_factory=DirectionOptions)
    weight_decay: float = 0.0
    target: float = 0.5
    tolerance: int = 0
    group_divisible: int = 1
    criteria: Mapping[AnyCriterion, float] = field(default_factory=lambda: WEIGHTS)
    times: Timetable = field(default_factory=Timetable)


class HESSOCRIC(DirectedRowOptimizer):
    """HESSO-CRIC over `rows`; parameters of `params` outside them take plain steps.

    Stages, in `units["stage"]`: "before"; "begin", one plain step whose end all weights go back to;
    "trials": no parameter learns; "cycles": all learn, and go back at the end of each; "shrink";
    "after". The trials must know the loss: `step(closure)`, or `observe(loss)` before `step()`.
    """

    def __init__(self, params: Params, rows: Rows, lr: float, options: HESSOCRICOptions) -> None:
        super().__init__(params, rows, lr, options.direction, options.weight_decay)
        self.options = options
        self._loss: Tensor | None = None
        self._quota = Quota(rows, options.target, options.group_divisible)
        self.tried = [i for i, n in enumerate(rows.sizes) if n > options.group_divisible]
        self._points: dict[Criterion, float] = {
            name: options.criteria.get(name, 0.0) for name in CRITERIA
        }
        nothing = torch.zeros_like(rows.entries, dtype=torch.bool)
        zeros = rows.entries.new_zeros(len(TRIALS), len(rows.sizes))
        self.units.update(stage="before", call=0, cycle=0, samples=0, excess=zeros)
        self.units.update({k: nothing.clone() for k in ("pruned", "redundant", "tested", "low")})
        self.units.update(collected=torch.zeros_like(rows.entries), rank=nothing.long())
        self.units["loss"] = zeros.new_zeros(())
        self.schedule(options.times)

    def schedule(self, times: Timetable) -> None:
        """What `Timetable` says; the same throughout a training."""
        self.units.update(asdict(times))

    def observe(self, loss: Tensor) -> None:
        """The loss of this step's gradients."""
        self._loss = loss.detach()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; waits for the device at the end of a cycle only.

        Raises:
            ValueError: a trial does not know the loss.
        """
        if self.units["stage"] != "trials":
            self._loss = None
            if self.units["stage"] == "before" and self.units["step"] >= self.units["start_step"]:
                self.units["stage"] = "begin"
            loss = super().step(closure)
            self._advance()
            return loss
        if closure is not None:
            with torch.enable_grad():
                self._loss = torch.as_tensor(closure()).detach()
        if self._loss is None:
            raise ValueError(
                "HESSO-CRIC is trying out channels and needs the loss of every step: call "
                "observe(loss) before step(), or give step() a closure"
            )
        loss, self._loss = self._loss, None
        self.count()
        self._try(loss)
        return loss

    def replay_key(self) -> Hashable | None:
        units, stage = self.units, self.units["stage"]
        begins = stage == "before" and units["step"] >= units["start_step"]
        plain = stage in ("before", "after") and not begins and not self.counts_in_direction
        return stage if plain else None

    def stays_zero(self) -> Tensor:
        return self.units["pruned"]

    def step_rows(self, moves: list[Tensor]) -> None:
        """The plain step, and a linear shrink of what is being tested or removed."""
        units, stage = self.units, self.units["stage"]
        if stage in ("begin", "cycles"):
            self._sample(redundancy(self.rows, moves, self._points))
        factor = torch.ones(self.rows.count, dtype=self.rows.dtype, device=units["pruned"].device)
        if stage in ("cycles", "shrink"):
            left = units["sampling_steps" if stage == "cycles" else "hybrid_steps"] - units["call"]
            factor.masked_fill_(units["redundant"], (left - 1) / left)
        factor.masked_fill_(units["pruned"], 0.0)
        self.move_rows(moves, factor, self.row_setting("lr") * factor, self.row_decays())

    def _sample(self, scores: Tensor) -> None:
        units = self.units
        if units["stage"] == "begin":
            units["rank"] = self.rows.rank_in_groups(scores)
            units["redundant"] = self._choose(scores)
            return
        units["collected"] = units["collected"] + scores
        units["samples"] += 1
        units["low"] = units["low"] | self._choose(scores)

    def _choose(self, scores: Tensor) -> Tensor:
        none = self.units["pruned"]
        lowest = self._quota.lowest(scores, self._quota.goal, none)
        return self._quota.multiples(lowest, scores, none)

    def _advance(self) -> None:
        """To the next stage, once all parameters have been moved."""
        units = self.units
        if units["stage"] in ("before", "after"):
            return
        units["call"] += 1
        if units["stage"] == "begin":
            self._remember()
            self._enter("trials" if units["trials"] and self.tried else "cycles")
        elif units["stage"] == "cycles" and units["call"] >= units["sampling_steps"]:
            self._end_cycle()
        elif units["stage"] == "shrink" and units["call"] >= units["hybrid_steps"]:
            units["pruned"] = units["redundant"]
            self._enter("after")

    def _enter(self, stage: str) -> None:
        self.units.update(stage=stage, call=0)

    def _try(self, loss: Tensor) -> None:
        """Two steps per trial: the lowest of one group go to zero, then the loss is compared."""
        units, (trial, second) = self.units, divmod(self.units["call"], 2)
        level, at = divmod(trial, len(self.tried))
        group = self.tried[at]
        if second:
            units["excess"][level, group] = loss / units["loss"].clamp(min=1e-12) - 1.0
            self._go_back()
        else:
            units["loss"] = loss.to(units["loss"])
            number = int(TRIALS[level] * self.rows.sizes[group])
            lowest = (self.rows.group_of == group) & (units["rank"] < number)
            self.rows.scale_((~lowest).to(self.rows.dtype))
        units["call"] += 1
        if units["call"] == 2 * units["trials"] * len(self.tried):
            self._enter("cycles")

    def _end_cycle(self) -> None:
        """Go back; what looked low on the way and was not tested yet is tested next."""
        units = self.units
        units["tested"] = units["tested"] | units["redundant"]
        suspects = units["low"] & ~units["tested"]
        units["low"] = torch.zeros_like(suspects)
        units["cycle"] += 1
        self._go_back()
        if units["cycle"] < units["cycles"] and int(suspects.sum()) > self.options.tolerance:
            units["redundant"] = suspects
            self._enter("cycles")
            return
        units["redundant"] = self._choose(self.final_scores())
        for own in self.state.values():
            own.pop("reference")
        self._enter("shrink")

    def final_scores(self) -> Tensor:
        """Mean of all samples, and what the trials said about the loss: a doubled loss weighs what
        a typical score does, and all of them together no more than a criterion."""
        collected = self.units["collected"] / max(self.units["samples"], 1)
        excess = self.loss_term()
        length = excess.square().sum().sqrt().clamp(min=math.sqrt(self.rows.count))
        return collected + self.options.criteria.get("loss", 0.0) * excess / length

    def loss_term(self) -> Tensor:
        """Relative loss in excess, mean over the trials that a channel was in; one that was in none
        stands with the largest trial of its group."""
        rows, made = self.rows, TRIALS[: self.units["trials"]]
        terms, numbers, largest = (torch.zeros_like(rows.entries) for _ in range(3))
        for level, fraction in sorted(enumerate(made), key=lambda pair: pair[1]):
            size = (fraction * rows.group_size).floor()
            inside = (self.units["rank"] < size[rows.group_of]).to(terms.dtype)
            largest = self.units["excess"][level][rows.group_of]
            terms += inside * largest
            numbers += inside
        return torch.where(numbers > 0, terms / numbers.clamp(min=1), largest)

    def _remember(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["reference"] = p.detach().clone()

    def _go_back(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["reference"])


class HESSOCRICConfig(Strict):
    """Settings of HESSO-CRIC. The recipe's optimizer (sgd, adam, adamw) gives the direction.

    Fractions of all steps: `start_fraction` before the choice begins, `cycle_fraction` for trials
    (at most half of it) and cycles together, `pruning_fraction` for the shrink. `cycles`: at most
    so many; they stop when at most `tolerance` channels are new. `criteria`: weights by name.
    """

    target_group_sparsity: Fraction = 0.5
    start_fraction: Fraction = 0.1
    cycle_fraction: Fraction = 0.2
    pruning_fraction: Fraction = 0.1
    cycles: Annotated[int, Field(ge=1)] = 10
    tolerance: Annotated[int, Field(ge=0)] = 0
    group_divisible: Annotated[int, Field(ge=1)] = 1
    criteria: dict[AnyCriterion, NonNegative] = Field(default_factory=lambda: dict(WEIGHTS))
    groups: GroupScope = "all"

    @model_validator(mode="after")
    def _possible(self) -> HESSOCRICConfig:
        if not any(v for k, v in self.criteria.items() if k != "loss"):
            raise ValueError("criteria: all weights but that of loss are 0")
        if self.start_fraction + self.cycle_fraction + self.pruning_fraction > 1:
            raise ValueError(
                "start_fraction + cycle_fraction + pruning_fraction is more than the whole training"
            )
        return self


def timetable(config: HESSOCRICConfig, total: int, tried: int) -> Timetable:
    """Of a training of `total` steps with so many groups to try; the first step of the choice is
    one of plain training."""
    span, trial = int(config.cycle_fraction * total), 2 * max(tried, 1)
    trials = min(len(TRIALS), span // 2 // trial) if config.criteria.get("loss") else 0
    rest = max(span - 1 - trials * trial, 1)
    cycles = min(config.cycles, rest)
    hybrid = max(int(config.pruning_fraction * total), 1)
    latest = total - (1 + trials * trial + cycles * (rest // cycles) + hybrid)
    start = max(min(int(config.start_fraction * total), latest), 0)
    return Timetable(start, trials, cycles, rest // cycles, hybrid)


@register_method("hesso_cric", HESSOCRICConfig)
class HESSOCRICMethod(RowMethod[HESSOCRIC]):
    """One phase; the optimizer learns in the first step when its stages are."""

    needs_loss = True

    def __init__(self, config: HESSOCRICConfig) -> None:
        super().__init__(config.groups)
        self.config = config

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        config = self.config
        options = HESSOCRICOptions(
            direction=direction_options(recipe, faithful=False),
            weight_decay=recipe.optimizer.weight_decay,
            target=config.target_group_sparsity,
            tolerance=config.tolerance,
            group_divisible=config.group_divisible,
            criteria=config.criteria,
        )
        live = parameter_groups(model, recipe.optimizer)
        self.epochs = recipe.epochs
        self.stepped = HESSOCRIC(live, self.rows(model), recipe.optimizer.lr, options)
        return self.stepped

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        if self.stepped is None or at.loss is None:
            return
        total = self.total_steps(at)
        self.stepped.schedule(timetable(self.config, total, len(self.stepped.tried)))
        self.stepped.observe(at.loss)

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        if self.stepped is not None:
            stats.logged["cycles"] = self.stepped.units["cycle"]
        return super().end_epoch(model, stats)
