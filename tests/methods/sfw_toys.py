"""A small network, its batches, and SFW prepared on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.sfw import SFWConfig, SFWMethod
from pipeline.training.method import Phase
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units

PHASE = Phase("train", 3)
RECIPE = Recipe(epochs=3)
UNITS = Units(("0.weight", "4.weight"), ())


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 3))


def toy_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(8, 1, 4, 4, generator=g), torch.randint(3, (8,), generator=g))
        for _ in range(count)
    ]


def prepared(**settings: Any) -> tuple[SFWMethod, nn.Sequential]:
    method, model = SFWMethod(SFWConfig(**settings)), net()
    method.prepare(model, UNITS, iter(toy_batches(4)))
    return method, model
