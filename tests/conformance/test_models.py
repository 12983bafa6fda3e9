"""Every registered network against the contract: it builds, is traced, and obeys the two laws."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from pipeline import registry
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import MacsModel, count
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan, randomise_bn

SMALL = {"width": 8}
"""Widths are arguments so that a network can be checked without its weight."""


def classifiers() -> list[tuple[str, str]]:
    specs = [s for f in registry.family_names() for s in registry.family_models(f).values()]
    return [(s.family, s.name) for s in specs if s.task == "classification" and "110" not in s.name]


def build(family: str, name: str) -> tuple[nn.Module, torch.Tensor, tuple[str, ...]]:
    spec = registry.model_spec(family, name)
    side = 32 if family in ("vgg", "mobilenet", "resnet_imagenet") else 16
    info = DatasetInfo("toy", (3, side, side), 7)
    known = inspect.signature(spec.build).parameters
    torch.manual_seed(0)
    model = spec.build(info, **{k: v for k, v in SMALL.items() if k in known})
    return model, torch.randn(2, *info.input_shape), spec.never_prune


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_a_registered_network_is_pruned_exactly(family: str, name: str) -> None:
    model, example, never = build(family, name)
    units = trace_units(model, example, never)
    assert units.prunable
    heads = [g for g in units.groups if any(s.tensor.startswith(never) for s in g.zig)]
    assert heads
    assert not any(g.prunable for g in heads)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(1))
    assert_laws(lambda: build(family, name)[0], example, units, plan, torch.float64)


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_the_cost_of_a_plan_is_the_cost_of_the_shrunk_network(family: str, name: str) -> None:
    model, example, never = build(family, name)
    units = trace_units(model, example, never)
    plan = random_plan(units, 0.3, torch.Generator().manual_seed(2))
    costs = MacsModel(model, example[:1], units)
    randomise_bn(model, torch.Generator().manual_seed(3))
    shrink(plan, model, units)
    counted = count(model, example[:1])
    assert (costs.macs(plan), costs.params(plan)) == (counted.macs, counted.params)
