"""Small networks, one per rule of the tracer: build, example input, prunable units expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.units.groups import Units
from pipeline.units.trace import trace_units
from pipeline.units.trace.tracer import Attention


@dataclass(frozen=True)
class Case:
    """`prunable` is counted by hand from the definition of a unit."""

    build: Callable[[], nn.Module]
    example: Any
    prunable: int
    attention: Attention = "heads"

    def units(self) -> Units:
        """Traced."""
        return trace_units(self.build(), self.example, attention=self.attention)


class Net(nn.Module):
    """Layers by name and a forward given as a function of (self, inputs...)."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self, *inputs)


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


def conv(a: int, b: int, k: int = 3, **args: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **args)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


CASES: dict[str, Case] = {}


def case(
    prunable: int, *, example: Any = None, attention: Attention = "heads"
) -> Callable[[Callable[[], nn.Module]], Any]:
    """Register the builder under its name; every build starts from the same seed."""

    def decorate(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def seeded() -> nn.Module:
            torch.manual_seed(0)
            return build()

        inputs = image() if example is None else example
        CASES[build.__name__] = Case(seeded, inputs, prunable, attention)
        return build

    return decorate
