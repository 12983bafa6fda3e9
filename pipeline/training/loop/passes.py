"""Forward and backward passes of one batch, whole or in pieces, in one or several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.loop.distributed import MeanGradients, TeamError
from pipeline.training.loop.job import Job
from pipeline.training.options.mixup import mixed
from pipeline.training.tasks.task import parts


class Backward:
    """Forward and backward passes of `job` through `forward`: the model or its compiled form."""

    def __init__(self, job: Job, forward: nn.Module) -> None:
        self.job, self.forward = job, forward

    def blended(self, batch: Any, step: int, at: int) -> Any:
        """The batch, blended if the recipe has mixup.

        Args:
            step: optimizer steps so far in the whole training.
            at: optimizer steps so far in this epoch.
        """
        job = self.job
        if not job.recipe.mixup:
            return batch
        seed = job.seed if job.recipe.data_seed is None else job.recipe.data_seed
        count = self._count(job.task.size(batch), at)
        return mixed(batch, job.recipe.mixup, seed, step, job.team, count)

    def batch(
        self, batch: Any, step: int, gradients: MeanGradients
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradients of the whole batch. This process sees a part, which may be empty.
        Returns the part's mean loss and sums.

        Raises:
            TeamError: the part is empty, and the other processes would wait for its statistics.
        """
        job = self.job
        size = job.task.size(batch)
        if size:
            with job.team.own_randomness(job.device, job.seed, step):
                found = self._pieces(parts(batch, job.recipe.accumulation), size, gradients)
        elif job.recipe.sync_batchnorm:
            raise TeamError(
                f"the last batch of the epoch is too small for {job.team.size} processes with "
                "sync_batchnorm: true; change batch_size in params.yaml"
            )
        else:
            found = torch.zeros((), device=job.device), {}
        gradients.apply(size)
        return found

    def _count(self, own: int, at: int) -> int:
        """Number of examples in the whole batch at step `at` of the epoch. Only the last batch may
        be small, so processes exchange sizes only there."""
        if self.job.team.alone:
            return own
        last = at + 1 == len(self.job.train)
        return sum(self.job.team.gather(own)) if last else self.job.recipe.batch_size

    def _pieces(
        self, pieces: list[Any], size: int, gradients: MeanGradients
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of the pieces, and of the penalty once. Returns loss and sums of the
        batch."""
        job = self.job
        total, sums = None, dict[str, Tensor]()
        for number, piece in enumerate(pieces):
            with self.autocast():
                loss, found = job.task.loss(self.forward, piece)
            if len(pieces) > 1:
                loss = loss * (job.task.size(piece) / size)
            penalty = None if number else job.method.penalty(job.model)
            whole = loss if penalty is None else loss + penalty
            whole.backward(gradients.weight(whole, size))
            total = loss.detach() if total is None else total + loss.detach()
            sums = {k: sums[k] + v if number else v for k, v in found.items()}
        assert total is not None
        return total, sums

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the recipe."""
        if self.job.recipe.precision == "bf16":
            # A replayed graph would reuse the cached cast of weights from before the step.
            cache = not self.job.recipe.cuda_graph
            return torch.autocast(self.job.device.type, dtype=torch.bfloat16, cache_enabled=cache)
        return nullcontext()

    def validate(self) -> dict[str, float]:
        """Scores on the validation split; {} without one. The first process measures while the
        others wait."""
        job = self.job
        if job.validation is None:
            return {}
        if not job.team.first:
            return job.team.tell({})
        with self.autocast():
            scores = job.task.scores(self.forward, job.validation)
        return job.team.tell(scores)
