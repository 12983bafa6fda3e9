"""The distribution of a network's weight magnitudes, for its record."""

from __future__ import annotations

from torch import nn

from pipeline.measure.distribution import (
    OVERALL,
    MagnitudeHistogram,
    layer_histograms,
    weight_distribution,
)
from pipeline.study.records.sweep import Histogram, WeightDistribution


def distribution_of(model: nn.Module) -> WeightDistribution:
    """The 12 counts of Miao et al. and the histogram of every parameter."""
    decades, layers = weight_distribution(model), layer_histograms(model)
    return WeightDistribution(
        thresholds=decades.edges[::-1],
        above=decades.above[::-1],
        edges=layers[OVERALL].edges,
        layers={name: _trimmed(histogram) for name, histogram in layers.items()},
    )


def _trimmed(found: MagnitudeHistogram) -> Histogram:
    """The histogram without the empty bins at both ends."""
    filled = [i for i, count in enumerate(found.counts) if count]
    if not filled:
        return Histogram(found.zeros, 0, ())
    first, last = filled[0], filled[-1]
    return Histogram(found.zeros, first, found.counts[first : last + 1])
