"""Settings of HESSO-CRIC, and the timetable of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods._oto.redundancy import CRITERIA, Criterion
from methods._oto.row_method import RowConfig
from pipeline.training.recipe import Fraction, NonNegative

TRIALS = (0.5, 0.25, 0.75)
"""Fractions of a group that its trials set to zero; short trainings run only the first ones."""

AnyCriterion = Criterion | Literal["loss"]
WEIGHTS: Mapping[AnyCriterion, float] = MappingProxyType(
    dict[AnyCriterion, float]([*CRITERIA.items(), ("loss", 1.0)])
)
"""Weight of each criterion, as in the authors' program."""


class HESSOCRICConfig(RowConfig):
    """Settings of HESSO-CRIC. The recipe's optimizer (sgd, adam, adamw) gives the direction.

    Attributes:
        target_group_sparsity: fraction of zero channels to reach.
        start_fraction: fraction of all steps before the trials and cycles.
        cycle_fraction: fraction of all steps for trials (at most half of it) and cycles together.
        pruning_fraction: fraction of all steps for the final shrink.
        cycles: maximum number of cycles.
        tolerance: cycles stop earlier once at most this many low-scoring channels are untested.
        group_divisible: the number of channels kept in a group is a multiple of this; groups that
            are not larger are not pruned.
        criteria: weights of the scores by name; low score = redundant.
    """

    target_group_sparsity: Fraction = 0.5
    start_fraction: Fraction = 0.1
    cycle_fraction: Fraction = 0.2
    pruning_fraction: Fraction = 0.1
    cycles: Annotated[int, Field(ge=1)] = 10
    tolerance: Annotated[int, Field(ge=0)] = 0
    group_divisible: Annotated[int, Field(ge=1)] = 1
    criteria: dict[AnyCriterion, NonNegative] = Field(default_factory=lambda: dict(WEIGHTS))

    @model_validator(mode="after")
    def _possible(self) -> HESSOCRICConfig:
        if not any(v for k, v in self.criteria.items() if k != "loss"):
            raise ValueError("criteria: all weights but that of loss are 0")
        if self.start_fraction + self.cycle_fraction + self.pruning_fraction > 1:
            raise ValueError(
                "start_fraction + cycle_fraction + pruning_fraction is more than the whole training"
            )
        return self


@dataclass(frozen=True)
class Timetable:
    """The stages of a training, in optimizer steps.

    Attributes:
        start_step: steps of plain training before stage "begin".
        trials: number of `TRIALS` run on every group, two steps each.
        cycles: maximum number of cycles, of `sampling_steps` each.
        hybrid_steps: length of the final shrink.
    """

    start_step: int = 0
    trials: int = len(TRIALS)
    cycles: int = 10
    sampling_steps: int = 10
    hybrid_steps: int = 1


def timetable(config: HESSOCRICConfig, total: int, tried: int) -> Timetable:
    """The timetable of a training of `total` steps with `tried` groups to run trials on.

    One step of `cycle_fraction` is the plain step of stage "begin".
    """
    span, trial = int(config.cycle_fraction * total), 2 * max(tried, 1)
    trials = min(len(TRIALS), span // 2 // trial) if config.criteria.get("loss") else 0
    rest = max(span - 1 - trials * trial, 1)
    cycles = min(config.cycles, rest)
    hybrid = max(int(config.pruning_fraction * total), 1)
    latest = total - (1 + trials * trial + cycles * (rest // cycles) + hybrid)
    start = max(min(int(config.start_fraction * total), latest), 0)
    return Timetable(start, trials, cycles, rest // cycles, hybrid)
