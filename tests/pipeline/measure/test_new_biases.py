"""Surgery that gives a layer a bias: what it costs is known before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.measure.count import MacsModel, count
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws


def chain() -> nn.Module:
    """The second and third layer have no bias."""
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Sigmoid()),
        *(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3)),
    )


class Mixture(nn.Module):
    """All experts of a list are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        each = [expert(x) for expert in self.experts]
        return sum(shares[..., i : i + 1] * y for i, y in enumerate(each))


def checked(model: nn.Module, units: Units, lost: dict[str, list[int]]) -> nn.Module:
    """The shrunk network, whose cost was known, and which computes what the masked one does."""
    example = torch.linspace(-1, 1, 12).view(3, 4)
    keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in units.groups if g.name in lost}
    for name, gone in lost.items():
        keep[name][gone] = False
    plan = PruningPlan(Granularity.STRUCTURED, keep)
    costs, small = MacsModel(model, example, units), copy.deepcopy(model)
    shrink(plan, small, units)
    counts = count(small, example)
    assert (costs.params(plan), costs.macs(plan)) == (counts.params, counts.macs)
    return assert_laws(lambda: copy.deepcopy(model), example, units, plan)


@pytest.mark.parametrize(
    ("lost", "biases"),
    [
        ({"2": [0]}, [None, 7]),
        ({"0": [1, 2]}, [5, None]),
        ({"0": [1, 2], "2": [0]}, [4, 7]),
        ({"0": list(range(6))}, [5, None]),
        ({"0": [1], "2": list(range(5))}, [None, 7]),
        ({"2": list(range(5)), "4": [3]}, [None, 6]),
    ],
)
def test_biases_are_made_where_something_is_left(
    lost: dict[str, list[int]], biases: list[int | None]
) -> None:
    model = chain()
    small = checked(model, trace_units(model, torch.zeros(3, 4)), lost)
    made = [getattr(small[i], "bias", None) for i in (2, 4)]
    assert [None if b is None else len(b) for b in made] == biases


def test_an_expert_that_goes_gets_none() -> None:
    model = Mixture()
    units = trace_units(model, torch.zeros(3, 4))
    lost = {"experts.0.0": [2, 3], "experts.1.0": [0], "experts (experts)": [0]}
    kinds = {g.name: g.kind for g in units.prunable if g.name in lost}
    assert sorted(kinds.values()) == ["channel", "channel", "expert"], "\n".join(
        map(str, units.groups)
    )
    small = checked(model, units, lost)
    assert [expert[2].bias is not None for expert in small.experts] == [True, False]
