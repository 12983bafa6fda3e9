"""Redundancy scores of channels, from their weights x and the step v that the optimizer will take.

The criteria are those of HESSO (Chen et al., 2024, arXiv:2409.09085): a low score means redundant.
Nothing here synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from pipeline.units.rows import Rows

Criterion = Literal[
    "magnitude",
    "avg_magnitude",
    "cosine_similarity",
    "taylor_first_order",
    "taylor_second_order",
]
CRITERIA: Mapping[Criterion, float] = MappingProxyType(
    {
        "magnitude": 0.2,
        "avg_magnitude": 0.2,
        "cosine_similarity": 0.2,
        "taylor_first_order": 0.2,
        "taylor_second_order": 0.2,
    }
)
"""Weight of each criterion, as in the authors' program."""


def redundancy(rows: Rows, moves: Sequence[Tensor], weights: Mapping[Criterion, float]) -> Tensor:
    """Weighted sum of the criteria, each normalised to unit L2 norm over all channels."""
    square, inner, slope = rows.gram(moves)
    norm = square.sqrt()
    values: dict[Criterion, Tensor] = {
        "magnitude": norm,
        "avg_magnitude": norm / (rows.entries + 1e-6),
        "cosine_similarity": inner / ((norm + 1e-8) * (slope.sqrt() + 1e-8)) + 1.0,
        "taylor_first_order": inner.abs(),
        "taylor_second_order": 0.5 * inner.square(),
    }
    total = torch.zeros_like(norm)
    for name, weight in weights.items():
        length = (1e-8 + values[name].square().sum()).sqrt() + 1e-8
        total += weight * values[name] / length
    return total


class Quota:
    """Chooses redundant channels such that every group keeps a positive multiple of `divisor`.

    Attributes:
        free: bool, shape (count,): channels of groups larger than `divisor`; other groups are not
            pruned.
        goal: number of channels to prune, the fraction `target` of the channels of free groups.
    """

    def __init__(self, rows: Rows, target: float, divisor: int) -> None:
        self._rows, self._divisor = rows, divisor
        self.free = (rows.group_size > divisor)[rows.group_of]
        self.goal = int(sum(s for s in rows.sizes if s > divisor) * min(target, 0.999))

    def lowest(self, scores: Tensor, number: int, gone: Tensor) -> Tensor:
        """Choose the channels with the lowest scores until `number` are pruned, `gone` included.

        The `divisor` channels with the highest scores of each group are never chosen.
        """
        best = self._rows.rank_in_groups(-scores.masked_fill(gone, -torch.inf))
        open_ = self.free & ~gone & (best >= self._divisor)
        rank = self._rows.rank(scores.masked_fill(~open_, torch.inf))
        return open_ & (rank < number - gone.sum())

    def multiples(self, chosen: Tensor, scores: Tensor, gone: Tensor) -> Tensor:
        """Drop the highest scores from `chosen` until each group keeps a multiple of `divisor`."""
        rows, divisor = self._rows, self._divisor
        left = rows.group_size - rows.sum_groups(chosen | gone)
        kept = (left / divisor).ceil().clamp(min=1) * divisor
        dearest = rows.rank_in_groups(-scores.masked_fill(~chosen, -torch.inf))
        return chosen & (dearest >= (kept - left)[rows.group_of])
