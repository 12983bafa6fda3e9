"""Mixup (Zhang et al., ICLR 2018): train on blends of two images, with the blend of their losses.

    x = w x_i + (1 - w) x_j        loss = w L(f(x), y_i) + (1 - w) L(f(x), y_j)

There is one w ~ Beta(alpha, alpha) per batch, and the partners j are a permutation of the batch, as
in the authors' program. L is the task's loss, with label smoothing, which is linear in the labels.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from pipeline.training.loop.distributed import ALONE, Team

MixedBatch = tuple[Tensor, Tensor, Tensor, Tensor]


def mixed(
    batch: tuple[Tensor, Tensor],
    alpha: float,
    seed: int,
    step: int,
    team: Team = ALONE,
    count: int | None = None,
) -> MixedBatch:
    """Blended images, labels, the partners' labels, and w once per example.

    The result depends only on (seed, step) and the batch, so a resumed training draws the same
    blends. Several processes exchange the images of their parts, so that their blends equal those
    of one process.

    Args:
        count: number of examples in the whole batch; None if the team is one process.
    """
    images, labels = batch
    count = len(labels) if count is None else count
    random = Random(f"mixup/{seed}/{step}")
    weight = random.betavariate(alpha, alpha)
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    own = torch.randperm(count, generator=generator)[slice(*team.part.of(count))]
    partners = own.to(labels.device, non_blocking=True)
    theirs, others = (team.whole(tensor, count)[partners] for tensor in batch)
    blend = images * weight + theirs * (1.0 - weight)
    weights = torch.full(labels.shape, weight, device=labels.device)
    return blend, labels, others, weights
