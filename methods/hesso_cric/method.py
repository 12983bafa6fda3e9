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

from torch import nn

from methods._oto.row_method import RowMethod
from methods.hesso_cric.optimizer import HESSOCRIC
from methods.hesso_cric.settings import HESSOCRICConfig, timetable
from pipeline.registry import register_method
from pipeline.training.phases import EpochStats, StepContext


@register_method("hesso_cric", HESSOCRICConfig)
class HESSOCRICMethod(RowMethod[HESSOCRICConfig, HESSOCRIC]):
    """One phase; the optimizer learns in the first step when its stages are."""

    needs_loss = True
    make = HESSOCRIC

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
