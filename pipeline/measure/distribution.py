"""Distribution of weight magnitudes, for tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

OVERALL = "all"
"""Key in `layer_histograms` for all layers together."""


@dataclass(frozen=True)
class MagnitudeHistogram:
    """Counts of |w| between ascending edges.

    Attributes:
        edges: e_0 < ... < e_m.
        counts: m + 2 numbers: |w| <= e_0 without the zeros, e_0 < |w| <= e_1, ..., |w| > e_m.
        zeros: how many entries are exactly zero.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int

    @property
    def total(self) -> int:
        return sum(self.counts) + self.zeros

    @property
    def above(self) -> tuple[int, ...]:
        """How many entries exceed each edge, in the order of `edges`."""
        return tuple(accumulate(reversed(self.counts[1:])))[::-1]


def decade_thresholds() -> tuple[float, ...]:
    """10, 1, 0.1, ... down to 1e-10, by repeated division as Miao et al. count: 12 numbers."""
    return tuple(accumulate(range(11), lambda t, _: t / 10, initial=10.0))


@torch.no_grad()
def magnitude_histogram(tensors: Iterable[Tensor], edges: Iterable[float]) -> MagnitudeHistogram:
    """Histogram of |w| over all entries of `tensors`; edges are rounded to the tensors' dtype."""
    limits = tuple(sorted(edges))
    counts, zeros = [0] * (len(limits) + 1), 0
    for tensor in tensors:
        size = tensor.detach().abs().flatten()
        where = torch.bucketize(size, torch.tensor(limits, dtype=size.dtype, device=size.device))
        found = torch.bincount(where, minlength=len(counts)).tolist()
        none = int((size == 0).sum())
        counts = [a + b for a, b in zip(counts, found, strict=True)]
        counts[0], zeros = counts[0] - none, zeros + none
    return MagnitudeHistogram(limits, tuple(counts), zeros)


def weight_distribution(model: nn.Module) -> MagnitudeHistogram:
    """All parameters of a network by decade. `above`, reversed, are the 12 counts of Miao et al.;
    `counts`, reversed, their 13 bins."""
    return magnitude_histogram(model.parameters(), decade_thresholds())


def layer_histograms(
    model: nn.Module, smallest: float = 1e-10, largest: float = 10.0, per_decade: int = 4
) -> dict[str, MagnitudeHistogram]:
    """Logarithmic histogram of every parameter by name, and of all together under `OVERALL`."""
    steps = round(per_decade * math.log10(largest / smallest))
    edges = [smallest * 10 ** (i / per_decade) for i in range(steps + 1)]
    named = {name: magnitude_histogram([p], edges) for name, p in model.named_parameters()}
    return {OVERALL: magnitude_histogram(model.parameters(), edges), **named}
