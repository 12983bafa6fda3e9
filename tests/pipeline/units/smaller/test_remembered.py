"""Functions of a network's code that remember results: every forward runs the same operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan


@lru_cache(maxsize=4)
def angles(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device, dtype=torch.float32) / length


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers decorates such functions."""
    inner = lru_cache(maxsize=4)(function)

    @wraps(function)
    def outer(*args: Any) -> Any:
        return inner(*args)

    outer.inner = inner  # type: ignore[attr-defined]
    return outer


@remembering
def waves(length: int, device: torch.device) -> Tensor:
    return torch.sin(torch.arange(length, device=device, dtype=torch.float32))


class Turned(nn.Module):
    """Positions by a function of this file, asked for in both layers."""

    def __init__(self, positions: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 3)
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        where = {"angles": angles, "waves": waves}[self.positions]
        for layer in (self.first, self.second):
            x = torch.relu(layer(x)) * where(x.shape[1], x.device).to(x.dtype)[None, :, None]
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("positions", ["angles", "waves"])
def test_a_remembered_result_does_not_change_the_next_forward(positions: str) -> None:
    example = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    kept = angles if positions == "angles" else waves.inner  # type: ignore[attr-defined]
    dense = Turned(positions)(example)
    for _ in range(2):
        units = trace_units(Turned(positions), example)
        assert [g.size for g in units.prunable] == [8, 9]
        assert kept.cache_info().currsize == 0  # nothing on the meta device stays
    assert torch.equal(dense, Turned(positions)(example))
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    assert_laws(lambda: Turned(positions), example, units, plan)
