"""Counts against layers worked out by hand, and the cost model against the counted network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.measure.count import MacsModel, count, structured_cost
from pipeline.selection.saliency import group_norm
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import random_plan
from tests.pipeline.units.nets import CASES, Net, conv, image


def one(*shape: int) -> torch.Tensor:
    return torch.zeros(1, *shape)


def test_layers_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 64, 10),
    )
    counts = count(model, one(3, 8, 8))
    by_name = {x.name: x for x in counts.layers}
    assert by_name["0"].macs == 64 * 8 * 3 * 9
    assert by_name["1"].macs == 0
    assert by_name["2"].macs == 16 * 12 * 2 * 9
    assert by_name["3"].macs == 16 * 12 * 9
    assert by_name["4"].macs == 16 * 12 * 6 * 4
    assert by_name["6"].macs == 10 * 6 * 64
    assert counts.macs == sum(x.macs for x in counts.layers)
    assert counts.params == sum(p.numel() for p in model.parameters())
    assert by_name["2"].params == 12 * 2 * 9 + 12


def test_nonzero_counts_round_down_per_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.fill_(1.0).view(-1)[:7] = 0
        model[2].weight.fill_(1.0)[0] = 0
        model[2].bias.zero_()
    counts = count(model, one(1, 3, 3))
    assert (counts.params, counts.params_nonzero) == (18 + 9, 11 + 4)
    assert (counts.macs, counts.macs_nonzero) == (18 + 6, 11 + 4)
    counts = count(nn.Sequential(model[0]), one(1, 4, 4))
    assert counts.layers[0].macs_nonzero == 4 * 18 * 11 // 18


def test_shared_layers_are_counted_at_every_call_and_stored_once() -> None:
    model = CASES["shared_conv"].build()
    counts = count(model, one(3, 8, 8))
    assert {x.name: x.macs for x in counts.layers}["c"] == 2 * 64 * 36 * 9
    assert counts.params == sum(p.numel() for p in model.parameters())


def test_attention_is_counted() -> None:
    """Scores and weighted sum: 2 * heads * tokens^2 * width per head."""
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(1, 5, 8)
    counts = count(model, (x, x, x))
    assert counts.macs == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8


def test_published_counts() -> None:
    from torchvision.models import resnet50

    assert count(resnet50(weights=None), one(3, 224, 224)).macs == 4_089_184_256


def test_counting_changes_nothing_and_needs_no_meta() -> None:
    model = Net(lambda n, x: n.a(x) if float(x.sum()) == 0 else n.a(n.a(x)), a=conv(3, 3)).train()
    assert count(model, one(3, 4, 4)).macs == 16 * 3 * 27
    assert model.training


@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.prunable])
def test_cost_model_equals_the_shrunk_network(name: str, fraction: float) -> None:
    case = CASES[name]
    model, units = case.build(), case.units()
    if fraction == 1.0:
        masks = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in units.prunable[::2]}
        plan = PruningPlan(Granularity.STRUCTURED, masks)
    else:
        plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
    costs = MacsModel(model, case.example, units)
    shrink(plan, model, units)
    counts = count(model, case.example)
    assert (costs.params(plan), costs.macs(plan)) == (counts.params, counts.macs)


def test_cost_of_an_unstructured_plan() -> None:
    case = CASES["chain"]
    model = case.build()
    units = trace_units(model, case.example)
    mask = torch.ones(6, 3, 3, 3, dtype=torch.bool)
    mask[:2] = False
    plan = PruningPlan(Granularity.UNSTRUCTURED, {"0.weight": mask})
    dense = count(model, case.example)
    assert structured_cost(model, case.example, units, "params")(plan) == dense.params - 54
    assert structured_cost(model, case.example, units, "macs")(plan) == dense.macs - 2 * 64 * 54


def test_select_to_half_the_macs() -> None:
    case = CASES["se_gate"]
    model = case.build()
    units = trace_units(model, case.example)
    cost = structured_cost(model, case.example, units, "macs")
    target = Target(rule="macs", value=0.5)
    plan = select(group_norm(model, units), Granularity.STRUCTURED, target, cost)
    small = copy.deepcopy(model)
    shrink(plan, small, units)
    assert count(small, case.example).macs <= 0.5 * count(model, image()).macs
