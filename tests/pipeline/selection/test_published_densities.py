"""Masks at initialisation against the published densities of Tanaka et al. (NeurIPS 2020).

VGG-16 with BatchNorm on the shapes of CIFAR-100, weights of the convolutions and the linear layer
ranked together; their three runs give the spread that a fourth one may have.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, model_spec
from pipeline.selection.criteria import (
    keep_density,
    synflow,
)
from pipeline.units.trace import trace_units

DATA = Path(__file__).parent / "data" / "synflow_densities.csv"
FAMILY, NAME = "vgg", "vgg16_bn_lth"
ROUNDS = 100
EXAMPLE = torch.zeros(1, 3, 32, 32)


def published(pruner: str, log10_compression: int) -> list[list[float]]:
    """Percent of the weights kept per layer, of three runs."""
    lines = (line for line in DATA.read_text().splitlines() if not line.startswith("#"))
    found = [
        [float(value) for name, value in row.items() if name.startswith(("conv", "fc"))]
        for row in csv.DictReader(lines)
        if row["pruner"] == pruner and float(row["log10_compression"]) == log10_compression
    ]
    assert [len(run) for run in found] == [14, 14, 14]
    return found


def network() -> tuple[nn.Module, tuple[str, ...]]:
    torch.manual_seed(0)
    model = build_model(FAMILY, NAME, DatasetInfo("cifar100", (3, 32, 32), 100), {})
    names = trace_units(model, EXAMPLE, model_spec(FAMILY, NAME).never_prune).weights
    assert sum(model.get_parameter(n).numel() for n in names) == 14_761_664
    return model, names


def percent(keep: dict[str, Tensor]) -> list[float]:
    return [100.0 * int(mask.sum()) / mask.numel() for mask in keep.values()]


def assert_as_published(found: list[float], pruner: str, log10_compression: int) -> None:
    """Within 4% of the mean of the runs and three of their standard deviations."""
    for ours, *runs in zip(found, *published(pruner, log10_compression), strict=True):
        mean = sum(runs) / 3
        spread = math.sqrt(sum((r - mean) ** 2 for r in runs) / 2)
        assert ours == pytest.approx(mean, abs=0.04 * mean + 3 * spread + 0.002), (found, runs)


def everything(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in names}


@pytest.mark.parametrize("log10_compression", [1, 2, 3])
def test_magnitude(log10_compression: int) -> None:
    model, names = network()
    scores = {name: model.get_parameter(name).detach().abs() for name in names}
    density = 10.0**-log10_compression
    keep = keep_density(scores, everything(model, names), density, "global")
    assert_as_published(percent(keep), "magnitude", log10_compression)


@pytest.mark.slow
def test_synflow() -> None:
    """100 rounds to a compression of 100, as published; 10 comes after 50 (published: 100)."""
    model, names = network()
    keep = everything(model, names)
    for done in range(1, ROUNDS + 1):
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).mul_(keep[name])
        density = 10.0 ** (-2 * done / ROUNDS)
        keep = keep_density(synflow(model, names, EXAMPLE), keep, density, "global")
        if done == ROUNDS // 2:
            assert_as_published(percent(keep), "SynFlow", 1)
    assert_as_published(percent(keep), "SynFlow", 2)
