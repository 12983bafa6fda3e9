"""Random networks of every kind of operator: whatever is called prunable obeys the laws."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan

Layers = Callable[[int], list[nn.Module]]
Run = Callable[..., Tensor]


def bare(width: int) -> list[nn.Module]:
    """No layers."""
    return []


def gate(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    return x * torch.sigmoid(up(F.relu(down(x.mean((2, 3), keepdim=True)))))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Scaled(nn.Module):
    """A scale and a shift that all channels share."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a + b


# name -> (width must be a multiple of, layers for a width, how they run)
UNARY: dict[str, tuple[int, Layers, Run]] = {
    "conv": (1, lambda c: [nn.Conv2d(c, 6, 3, padding=1)], lambda x, m: m(x)),
    "pointwise": (1, lambda c: [nn.Conv2d(c, 8, 1)], lambda x, m: m(x)),
    "bare pointwise": (1, lambda c: [nn.Conv2d(c, 8, 1, bias=False)], lambda x, m: m(x)),
    "grouped": (2, lambda c: [nn.Conv2d(c, 6, 1, groups=2)], lambda x, m: m(x)),
    "depthwise": (1, lambda c: [nn.Conv2d(c, c, 3, padding=1, groups=c)], lambda x, m: m(x)),
    "transposed": (1, lambda c: [nn.ConvTranspose2d(c, 5, 3, padding=1)], lambda x, m: m(x)),
    "twice": (1, lambda c: [nn.Conv2d(c, c, 1)], lambda x, m: m(F.relu(m(x)))),
    "batch norm": (1, lambda c: [nn.BatchNorm2d(c)], lambda x, m: m(x)),
    "bare norm": (1, lambda c: [nn.BatchNorm2d(c, affine=False)], lambda x, m: m(x)),
    "group norm": (2, lambda c: [nn.GroupNorm(2, c)], lambda x, m: m(x)),
    "instance norm": (1, lambda c: [nn.InstanceNorm2d(c, affine=True)], lambda x, m: m(x)),
    "prelu": (1, lambda c: [nn.PReLU(c)], lambda x, m: m(x)),
    "gate": (1, lambda c: [nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)], gate),
    "relu": (1, bare, F.relu),
    "sigmoid": (1, bare, torch.sigmoid),
    "plus one": (1, bare, lambda x: x + 1),
    "scaled": (1, lambda _: [Scaled()], lambda x, m: m(x)),
    "taller": (1, bare, lambda x: F.max_pool2d(torch.cat([x, torch.cos(x)], 2), (2, 1))),
    "padded": (1, bare, lambda x: F.avg_pool2d(x, 3, 1, 1)),
    "times mean": (1, bare, lambda x: x * x.mean(1, keepdim=True)),
    "flip": (1, bare, lambda x: x.flip(3)),
    "channel roll": (1, bare, lambda x: x.roll(1, 1)),
    "slice": (2, bare, lambda x: x[:, 1:]),
    "halves": (2, bare, halves),
    "shuffle": (2, bare, shuffle),
    "pixel shuffle": (4, bare, lambda x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2)),
    "repeat": (1, bare, lambda x: x.repeat(1, 2, 1, 1)),
    "zeros": (1, bare, lambda x: torch.cat([x, torch.zeros_like(x)], 1)),
}
BINARY: dict[str, Run] = {
    "add": torch.add,
    "mul": torch.mul,
    "max": torch.maximum,
    "cat": lambda x, y: torch.cat([x, y], 1),
}


class RandomNet(nn.Module):
    """A program of operators, each on an earlier value, drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.program: list[tuple[Run, list[int], int, int]] = []
        self.layers = nn.ModuleList()
        values = [torch.zeros(1, 3, 4, 4)]
        for _ in range(draw.randint(4, 14)):
            i = len(values) - 1 if draw.random() < 0.6 else draw.randrange(len(values))
            if draw.random() < 0.25:
                values.append(self._join(draw, values, i))
            else:
                values.append(self._transform(draw, values, i))
        self.head = nn.Linear(values[-1].shape[1], 3)

    def _join(self, draw: random.Random, values: list[Tensor], i: int) -> Tensor:
        name = draw.choice(list(BINARY))
        fits = [
            j for j, v in enumerate(values) if name == "cat" or v.shape[1] == values[i].shape[1]
        ]
        return self._step(values, BINARY[name], [i, draw.choice(fits)], [])

    def _transform(self, draw: random.Random, values: list[Tensor], i: int) -> Tensor:
        width = values[i].shape[1]
        name = draw.choice([n for n, (k, _, _) in UNARY.items() if width % k == 0 and width >= k])
        _, layers, run = UNARY[name]
        return self._step(values, run, [i], layers(width))

    def _step(
        self, values: list[Tensor], run: Run, inputs: list[int], layers: list[nn.Module]
    ) -> Tensor:
        start = len(self.layers)
        self.layers.extend(layers)
        self.program.append((run, inputs, start, len(self.layers)))
        return run(*(values[i] for i in inputs), *layers).detach()

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for run, inputs, start, stop in self.program:
            values.append(run(*(values[i] for i in inputs), *self.layers[start:stop]))
        return self.head(values[-1].mean((2, 3)))


@pytest.mark.parametrize("seed", range(40))
def test_laws(seed: int) -> None:
    example = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    units = trace_units(RandomNet(seed), example)
    generator = torch.Generator().manual_seed(seed)
    dead = {
        g.name: torch.zeros(g.size, dtype=torch.bool)
        for g in units.prunable
        if torch.rand(1, generator=generator) < 0.4
    }
    for plan in (
        random_plan(units, 0.5, generator),
        random_plan(units, 0.9, generator),
        PruningPlan(Granularity.STRUCTURED, dead),
    ):
        assert_laws(lambda: RandomNet(seed), example, units, plan)


def test_the_networks_are_worth_testing() -> None:
    """Half of them have something to prune."""
    example = torch.zeros(1, 3, 4, 4)
    found = [bool(trace_units(RandomNet(seed), example).prunable) for seed in range(20)]
    assert sum(found) >= 8
