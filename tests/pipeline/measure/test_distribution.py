"""Counts of weights by magnitude against hand-counted values."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.measure.distribution import (
    OVERALL,
    decade_thresholds,
    layer_histograms,
    magnitude_histogram,
    weight_distribution,
)


def _model() -> nn.Linear:
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0, -10.0, 0.5], [-0.05, 0.0, 1e-12]]))
        model.bias.copy_(torch.tensor([3.0, -2e-7]))
    return model


def test_thresholds_are_divided_down_to_ten_to_the_minus_ten() -> None:
    thresholds = decade_thresholds()
    assert len(thresholds) == 12
    assert thresholds[:3] == (10.0, 1.0, 0.1)
    assert thresholds[7] == 1.0000000000000002e-06
    assert thresholds[-1] == 1.0000000000000003e-10


def test_counts_by_decade() -> None:
    found = weight_distribution(_model())
    assert found.above[::-1] == (1, 3, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6)
    assert found.counts[::-1] == (1, 2, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert found.zeros == 1
    assert found.total == 8


def test_histogram_per_layer_adds_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))
    found = layer_histograms(model)
    assert set(found) == {OVERALL, "0.weight", "0.bias", "2.weight", "2.bias"}
    layers = [h for name, h in found.items() if name != OVERALL]
    summed = tuple(map(sum, zip(*(h.counts for h in layers), strict=True)))
    assert found[OVERALL].counts == summed
    assert found[OVERALL].total == sum(p.numel() for p in model.parameters())
    assert len(found[OVERALL].edges) == 45
    assert found["0.weight"].edges[0] == 1e-10


def test_an_edge_belongs_to_the_bin_below() -> None:
    found = magnitude_histogram([torch.tensor([1.0, -1.0, 2.0, 0.0])], [2.0, 1.0])
    assert found.counts == (2, 1, 0)
    assert found.above == (1, 0)
    assert found.zeros == 1
