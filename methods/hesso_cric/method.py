"""HESSO-CRIC: HESSO that tests its choice of channels before it removes any.

Chen et al., HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and
Pruning, 2024 (https://arxiv.org/abs/2409.09085). A score at the current weights says little about
the network with those weights at zero, so a choice by score alone may remove indispensable
channels. The Corrective Redundant Identification Cycle (CRIC) shrinks the chosen channels to zero,
samples all scores on the way and restores the weights. The next cycle tests the channels that
scored low on the way and were not tested before. The mean of all samples decides. Before the
cycles, short trials per group measure how much the loss rises. Finally the channels shrink linearly
to zero as in HESSO. Units: channels. Target rule: `zeros`.

Deliberate deviations, all listed in docs/methods/hesso_cric.md: the loss term is the excess over
the loss before the trial, not divided by the trial's size; short trainings run fewer trials and
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
    """One phase; `after_backward` passes the timetable and the loss to the optimizer."""

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
