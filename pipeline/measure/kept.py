"""A plan as the values of a network: an entry is not zero where the plan keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from pipeline.measure.sources import Source
from pipeline.units.cuts import Alive, alive_positions
from pipeline.units.groups import Units
from pipeline.units.plan import PruningPlan

Shapes = Mapping[str, tuple[int, ...]]
Computed = Mapping[int, Tensor]


class _Kept:
    """Both kinds.

    Attributes:
        shapes: of all parameters and buffers.
        computed: where weights that are computed in the forward are not zero, by the id of their
            source. No plan changes them.
        numbers: entries left of parameters; those that are absent are whole.
    """

    def __init__(self, shapes: Shapes, computed: Computed, numbers: Mapping[str, int]) -> None:
        self.shapes, self.computed, self.numbers = shapes, computed, numbers

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def nonzero(self, name: str) -> int:
        return self.numbers.get(name, self.size(name))


class KeptWeights(_Kept):
    """Of an unstructured plan."""

    def __init__(self, shapes: Shapes, computed: Computed, plan: PruningPlan) -> None:
        super().__init__(shapes, computed, {n: int(mask.sum()) for n, mask in plan.keep.items()})
        self.plan = plan

    def entries(self, source: Source) -> Tensor:
        return source.evaluate(self._masks) if source.moved else self.computed[id(source)]

    @cached_property
    def _masks(self) -> dict[str, Tensor]:
        return _ones(self.shapes) | dict(self.plan.keep)


class KeptChannels(_Kept):
    """Of a structured plan, after surgery: computed weights are dense.

    Args:
        masks: group -> channels that are left, of those that lose some.
    """

    def __init__(
        self,
        shapes: Shapes,
        computed: Computed,
        numbers: Mapping[str, int],
        masks: Mapping[str, Tensor],
        units: Units,
    ) -> None:
        super().__init__(shapes, computed, numbers)
        self.masks, self.units = masks, units

    def entries(self, source: Source) -> Tensor:
        if source.moved:
            return source.evaluate(self._alive)
        return torch.ones_like(self.computed[id(source)])

    @cached_property
    def _alive(self) -> dict[str, Tensor]:
        left = _ones(self.shapes)
        cut: Alive = alive_positions(self.units, self.masks, self.shapes)
        for name, dims in cut.items():
            for dim, alive in dims.items():
                along = [-1 if d == dim else 1 for d in range(len(self.shapes[name]))]
                left[name] = left[name] & alive.view(along)
        return left


def _ones(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.ones((), dtype=torch.bool).expand(s) for name, s in shapes.items()}
