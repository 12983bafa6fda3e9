"""One optimizer step: gradients, hooks, optimizer, masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.training.loop.distributed import MeanGradients
from pipeline.training.loop.job import Job
from pipeline.training.loop.masking import Masking
from pipeline.training.loop.passes import Backward
from pipeline.training.phases import StepContext

Found = tuple[Tensor, Mapping[str, Tensor]]
"""Mean task loss of this process's part of the batch, and score sums over its examples."""


@dataclass(frozen=True)
class Step:
    """The steps of one phase. A call takes one step; the loop counts steps and sums results."""

    job: Job
    passes: Backward
    masking: Masking
    optimizer: Optimizer
    gradients: MeanGradients

    def __call__(self, batch: Any, at: StepContext) -> Found:
        job, method = self.job, self.job.method
        self.optimizer.zero_grad(set_to_none=True)
        loss, sums = self.passes.batch(batch, at.step, self.gradients)
        if method.needs_loss:
            at = replace(at, loss=job.team.mean(loss.double(), job.task.size(batch)))
        method.after_backward(job.model, at)
        if job.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(job.model.parameters(), job.recipe.clip_norm)
        self.optimizer.step()
        method.after_step(job.model, at)
        self.masking.apply()
        return loss, sums
