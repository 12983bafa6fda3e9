"""A small network, its batches, and SFW prepared on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.sfw import SFWConfig, SFWMethod
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units

Loss = Callable[[Tensor, Tensor], Tensor]
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


class ToyBatches:
    """Batches with the loss of a task, as the loop passes them to `prepare`."""

    def __init__(self, seen: Iterable[tuple[Tensor, Tensor]], loss: Loss = cross_entropy) -> None:
        self.seen, self._loss = seen, loss

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.seen)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._loss(model(batch[0]), batch[1])


class OneShot(ToyBatches):
    """Batches that can be iterated only once."""

    def __init__(self, seen: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__(iter(seen))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self.seen)  # type: ignore[call-overload, no-any-return]


def prepared(**settings: Any) -> tuple[SFWMethod, nn.Sequential]:
    method, model = SFWMethod(SFWConfig(**settings)), net()
    method.prepare(model, UNITS, ToyBatches(toy_batches(4)))
    return method, model
