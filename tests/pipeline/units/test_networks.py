"""Real networks: the counts of units that the papers give, and the two laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.info import DatasetInfo
from pipeline.registry import family_models, family_names, model_spec
from pipeline.units.groups import Units
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan

CIFAR = DatasetInfo("cifar10", (3, 32, 32), 10)
OURS = [
    (family, name)
    for family in family_names()
    for name in family_models(family)
    if model_spec(family, name).example is None
]
"""Networks of images; those of text are in test_attention.py."""
PAPER = {
    ("resnet_cifar", "resnet18"): 2880,
    ("resnet_cifar", "resnet50"): 11456,
    ("vgg", "vgg16"): 4224 + 2 * 512,
    ("vgg", "vgg16_bn"): 4224 + 2 * 512,
}
"""Specified: one ZIG per channel, residual streams tied per stage."""

TORCHVISION = {"resnet18": 2880, "resnet50": 11456, "vgg16_bn": 12416, "densenet121": 10240}
QUICK = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
LONG = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"),
    *("densenet121", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "googlenet"),
    *("inception_v3", "mnasnet0_5", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny"),
    "swin_t",
)


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return build()

    return make


def from_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = get_model(name, weights=None, **extra)
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def prunable(units: Units) -> int:
    return sum(g.size for g in units.prunable)


def check(build: Callable[[], nn.Module], example: Tensor, units: Units, fraction: float) -> None:
    plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32):
        assert_laws(build, example, units, plan, dtype)


@pytest.mark.parametrize(("family", "name"), PAPER)
def test_counts_of_the_papers(family: str, name: str) -> None:
    spec = model_spec(family, name)
    units = trace_units(spec.build(CIFAR), image(*CIFAR.input_shape), spec.never_prune)
    assert prunable(units) == PAPER[family, name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_on_torchvision(name: str) -> None:
    assert prunable(trace_units(from_torchvision(name), image(3, 224, 224))) == TORCHVISION[name]


@pytest.mark.parametrize(("family", "name"), OURS)
def test_laws_on_our_networks(family: str, name: str) -> None:
    spec = model_spec(family, name)
    small = {} if family in ("lenet", "mlp", "small") else {"width": 8}
    build = seeded(lambda: spec.build(CIFAR, **small))
    example = image(*CIFAR.input_shape)
    units = trace_units(build(), example, spec.never_prune)
    assert prunable(units) > 0
    check(build, example, units, 0.5 if "110" in name else 0.9)


@pytest.mark.parametrize("name", QUICK)
def test_laws_on_torchvision(name: str) -> None:
    build = seeded(lambda: from_torchvision(name))
    example = image(3, 64, 64)
    check(build, example, trace_units(build(), example), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "dtype"), [(0.5, torch.float32), (0.9, torch.float64)])
@pytest.mark.parametrize("name", LONG)
def test_laws_on_more_of_torchvision(name: str, fraction: float, dtype: torch.dtype) -> None:
    build = seeded(lambda: from_torchvision(name))
    example = image(3, 96, 96) if name == "inception_v3" else image(3, 64, 64)
    units = trace_units(build(), example)
    plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
    assert_laws(build, example, units, plan, dtype)
