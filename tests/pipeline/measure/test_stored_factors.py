"""Non-zero MACs follow the tensors that operators read, whatever they are called."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from pipeline.measure import reads
from pipeline.measure.count import MacsModel, count, structured_cost
from pipeline.selection.saliency import group_norm, magnitude
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.heads import with_open_heads
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net
from tests.pipeline.units.laws import random_plan

TOKENS, WIDTH = 5, 8


def nonzero(x: Tensor) -> int:
    return int(torch.count_nonzero(x))


@dataclass(frozen=True)
class Case:
    """A network, its input, and its non-zero MACs by hand."""

    build: Callable[[], nn.Module]
    example: Any
    by_hand: Callable[[Any], int]


def recurrent(model: Any) -> int:
    """Every matrix is read once per step."""
    return TOKENS * sum(nonzero(p) for p in model.parameters() if p.ndim == 2)


def attention(a: Any) -> int:
    """Four projections of every token; scores and their weighted sum are activations."""
    projections = [a.in_proj_weight] if a.in_proj_weight is not None else []
    projections += [getattr(a, f"{x}_proj_weight") for x in "qkv" if a.in_proj_weight is None]
    projections.append(a.out_proj.weight)
    return TOKENS * sum(nonzero(p) for p in projections) + 2 * TOKENS * TOKENS * WIDTH


def two_parameters() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, n.inner).relu(), n.outer)

    inner, outer = torch.randn(6, WIDTH), torch.randn(3, 6)
    return Net(run, inner=nn.Parameter(inner), outer=nn.Parameter(outer))


def low_rank() -> nn.Module:
    """Two parameters multiplied, their product added to a weight, as in LoRA."""

    def run(n: Net, x: Tensor) -> Tensor:
        return functional.linear(x, n.base.weight + n.up @ n.down)

    up, down = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, WIDTH))
    return Net(run, base=nn.Linear(WIDTH, 6, bias=False), up=up, down=down)


def low_rank_by_hand(n: Any) -> int:
    inner = sum(nonzero(n.up[:, k]) * nonzero(n.down[k]) for k in range(2))
    return inner + TOKENS * nonzero(n.base.weight + n.up @ n.down)


def concatenated() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        return functional.linear(x, torch.cat([n.a.weight, n.b.weight]))

    return Net(run, a=nn.Linear(WIDTH, 3), b=nn.Linear(WIDTH, 4))


def masked_by_torch() -> nn.Module:
    layer = nn.Linear(WIDTH, 6)
    prune.l1_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer)


def separate_projections() -> nn.Module:
    """Keys and values of another width than queries, in the open."""
    return with_open_heads(nn.MultiheadAttention(WIDTH, 2, kdim=6, vdim=6, batch_first=True))


def self_attention(opened: bool) -> nn.Module:
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    return with_open_heads(layer) if opened else layer


X = torch.zeros(1, TOKENS, WIDTH)


OTHER = torch.zeros(1, TOKENS, 6)


CASES: dict[str, Case] = {
    "LSTM": Case(lambda: nn.LSTM(WIDTH, 6, 2, batch_first=True), X, recurrent),
    "LSTM both ways": Case(
        lambda: nn.LSTM(WIDTH, 6, bidirectional=True, batch_first=True), X, recurrent
    ),
    "GRU": Case(lambda: nn.GRU(WIDTH, 6, batch_first=True), X, recurrent),
    "RNN": Case(lambda: nn.RNN(WIDTH, 6, batch_first=True), X, recurrent),
    "LSTMCell": Case(lambda: nn.LSTMCell(WIDTH, 6), X[0], recurrent),
    "attention": Case(lambda: self_attention(False), (X, X, X), attention),
    "open attention": Case(lambda: self_attention(True), (X, X, X), attention),
    "cross-attention": Case(separate_projections, (X, OTHER, OTHER), attention),
    "two parameters": Case(
        two_parameters, X, lambda n: TOKENS * (nonzero(n.inner) + nonzero(n.outer))
    ),
    "Bilinear": Case(
        lambda: nn.Bilinear(WIDTH, 6, 3),
        (X[0], OTHER[0]),
        lambda n: TOKENS * nonzero(n.weight),
    ),
    "matrix x vector": Case(
        lambda: Net(lambda n, x: x @ n.v, v=nn.Parameter(torch.randn(WIDTH))),
        X[0],
        lambda n: TOKENS * nonzero(n.v),
    ),
    "vector x vector": Case(
        lambda: Net(lambda n, x: x @ n.v, v=nn.Parameter(torch.randn(WIDTH))),
        X[0, 0],
        lambda n: nonzero(n.v),
    ),
    "low rank": Case(low_rank, X, low_rank_by_hand),
    "concatenated": Case(
        concatenated, X, lambda n: TOKENS * (nonzero(n.a.weight) + nonzero(n.b.weight))
    ),
    "torch's masks": Case(
        masked_by_torch, X, lambda n: TOKENS * nonzero(n[0].weight_orig * n[0].weight_mask)
    ),
    "weight norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(WIDTH, 6))),
        X,
        lambda n: TOKENS * nonzero(n[0].weight),
    ),
}


def traced(case: Case) -> tuple[nn.Module, Units]:
    torch.manual_seed(0)
    model = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, trace_units(model, case.example)


@pytest.mark.parametrize("name", CASES)
def test_zeros_in_any_parameter_are_seen(name: str) -> None:
    """Zeros straight in the parameters, as any method of pruning leaves them."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build()
    dense = count(model, case.example)
    assert dense.macs_nonzero == case.by_hand(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.8)
    counted = count(model, case.example)
    assert counted.macs == dense.macs
    assert counted.macs_nonzero == case.by_hand(model) < dense.macs_nonzero


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(list(CASES)), fraction=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_masks_cost_what_the_masked_network_counts(name: str, fraction: float, seed: int) -> None:
    case = CASES[name]
    model, units = traced(case)
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: model.get_parameter(n).shape for n in units.weights}
    keep = {n: torch.rand(s, generator=generator) >= fraction for n, s in shapes.items()}
    plan = PruningPlan(Granularity.UNSTRUCTURED, keep)
    costs = MacsModel(model, case.example, units)
    enforce(plan, model, units)
    counted = count(model, case.example)
    assert costs.macs(plan) == counted.macs_nonzero == case.by_hand(model)


def vit() -> nn.Module:
    """Patches, two blocks of opened attention and a perceptron, a head."""

    def run(n: Net, x: Tensor) -> Tensor:
        x = n.patches(x).flatten(2).transpose(1, 2)
        for attend, up, down in zip(n.attend, n.up, n.down, strict=True):
            x = x + attend(x, x, x, need_weights=False)[0]
            x = x + down(functional.gelu(up(x)))
        return n.head(x.mean(1))

    return with_open_heads(
        Net(
            run,
            patches=nn.Conv2d(3, 32, 4, 4),
            attend=nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in "ab"),
            up=nn.ModuleList(nn.Linear(32, 64) for _ in "ab"),
            down=nn.ModuleList(nn.Linear(64, 32) for _ in "ab"),
            head=nn.Linear(32, 10),
        )
    )


def no_weights(attention: nn.Module) -> nn.Module:
    """Asked for no average of the scores over all heads, so that a head can go."""
    return Net(lambda n, *x: n.attend(*x, need_weights=False)[0], attend=attention)


IMAGE = torch.zeros(1, 3, 16, 16)


STRUCTURED: dict[str, Case] = {
    "vit": Case(vit, IMAGE, lambda _: 0),
    "open attention": Case(lambda: no_weights(self_attention(True)), (X, X, X), lambda _: 0),
    "cross-attention": Case(
        lambda: no_weights(separate_projections()), (X, OTHER, OTHER), lambda _: 0
    ),
    "two parameters": CASES["two parameters"],
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(STRUCTURED)),
    fraction=st.sampled_from([0.2, 0.5, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_channels_cost_what_the_shrunk_network_counts(
    name: str, fraction: float, seed: int
) -> None:
    model, units = traced(STRUCTURED[name])
    example = STRUCTURED[name].example
    assert units.prunable
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(units, fraction, generator)
    costs = MacsModel(model, example, units)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for group in units.prunable:
            for s in group.slices:
                gone = s.index[~plan.keep[group.name]].flatten()
                masked.get_parameter(s.tensor).index_fill_(s.dim, gone, 0.0)
    shrink(plan, model, units)
    counted = count(model, example)
    assert (costs.params(plan), costs.macs(plan)) == (counted.params, counted.macs)
    assert counted.macs == counted.macs_nonzero
    products = sum(r.macs for r in reads.record(masked, example).readings if not r.stored)
    left = sum(r.macs for r in reads.record(model, example).readings if not r.stored)
    assert count(masked, example).macs_nonzero - products == counted.macs - left


def test_a_transformer_reaches_a_budget_of_macs() -> None:
    """90% of its weights gone, 10% of the MACs of its weights are left; 60% of its MACs can go."""
    torch.manual_seed(0)
    model = vit()
    units = trace_units(model, IMAGE)
    target = Target(rule="fraction", value=0.9)
    plan = select(magnitude(model, units), Granularity.UNSTRUCTURED, target)
    costs = MacsModel(model, IMAGE, units)
    masked = copy.deepcopy(model)
    enforce(plan, masked, units)
    counted = count(masked, IMAGE)
    assert costs.macs(plan) == counted.macs_nonzero
    products = 2 * 2 * 16 * 16 * 32
    assert counted.macs_nonzero - products == pytest.approx(
        0.1 * (counted.macs - products), rel=0.1
    )
    cost = structured_cost(model, IMAGE, units, "macs")
    chosen = select(
        group_norm(model, units), Granularity.STRUCTURED, Target(rule="macs", value=0.6), cost
    )
    shrink(chosen, model, units)
    assert count(model, IMAGE).macs == cost(chosen) <= 0.4 * counted.macs
