"""Random widths: seeded, within floors, as close to a budget as any other ranking."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.data.info import DatasetInfo
from pipeline.measure.count import structured_cost
from pipeline.selection.random_widths import random_widths
from pipeline.selection.select import Context, select
from pipeline.selection.target import Target
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan

S, U = Granularity.STRUCTURED, Granularity.UNSTRUCTURED
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
prices = st.lists(st.floats(0.5, 9.0), min_size=5, max_size=5)
seeds = st.integers(0, 10**6)


def saliency(of: list[int]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {f"g{i}": torch.rand(n, generator=g) for i, n in enumerate(of)}


def widths(plan: PruningPlan) -> list[int]:
    return [int(mask.sum()) for mask in plan.keep.values()]


@settings(max_examples=60, deadline=None)
@given(sizes, seeds, st.floats(0, 1))
def test_a_layer_keeps_its_share_rounded_whatever_the_cut(
    of: list[int], seed: int, narrowest: float
) -> None:
    """Kept of n at t: the integers j with j + 1/2 < t u n, that is t u n rounded, n at most."""
    scores = random_widths(saliency(of), seed, narrowest)
    draws = {name: float(s.max()) / 2 / s.numel() for name, s in scores.items()}
    assert all(narrowest <= u <= 1 + 1e-12 for u in draws.values())
    for t in (0.05, 0.3, 1.0, 3.0):
        for name, s in scores.items():
            share = t * draws[name] * s.numel()
            kept = int((s > 1 / t).sum())
            assert kept == s.numel() or abs(kept - share) <= 0.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(sizes, seeds)
def test_the_most_salient_units_of_a_layer_stay(of: list[int], seed: int) -> None:
    given_, scores = saliency(of), random_widths(saliency(of), seed)
    for name, s in given_.items():
        assert torch.equal(torch.argsort(s, stable=True), torch.argsort(scores[name], stable=True))


def test_of_equals_the_earlier_goes_first() -> None:
    scores = random_widths({"a": torch.ones(4)}, 0)["a"]
    assert torch.equal(torch.argsort(scores), torch.arange(4))


@settings(max_examples=60, deadline=None)
@given(sizes, prices, st.floats(0, 0.9), seeds, st.integers(0, 2), st.booleans())
def test_a_budget_is_met_to_one_unit(
    of: list[int], price: list[float], value: float, seed: int, least: int, closest: bool
) -> None:
    def cost(plan: PruningPlan) -> float:
        return sum(p * w for p, w in zip(price, widths(plan), strict=False))

    target = Target(
        rule="macs", value=value, scope="random", min_units=least, closest=closest, fill=closest
    )
    dense = sum(p * n for p, n in zip(price, of, strict=False))
    budget = (1 - value) * dense
    floors = sum(p * min(least, n) for p, n in zip(price, of, strict=False))
    if floors > budget:
        with pytest.raises(ValueError, match="cannot be cut"):
            select(saliency(of), S, target, cost, Context(seed=seed))
        return
    plan = select(saliency(of), S, target, cost, Context(seed=seed))
    step = max(price[: len(of)])
    assert abs(cost(plan) - budget) <= (step / 2 if closest else step) + 1e-6
    assert closest or cost(plan) <= budget + 1e-9
    assert all(w >= min(least, n) for w, n in zip(widths(plan), of, strict=True))
    assert plan.digest() == select(saliency(of), S, target, cost, Context(seed=seed)).digest()


def test_seeds_differ_and_one_layer_does_not_depend_on_the_others() -> None:
    scores = saliency([30] * 6)
    target = Target(rule="fraction", value=0.5, scope="random")
    found = [widths(select(scores, S, target, None, Context(seed=seed))) for seed in range(20)]
    assert len({tuple(w) for w in found}) == 20
    assert all(sum(w) == 90 for w in found)
    few = {name: scores[name] for name in ("g4", "g1")}
    whole, part = random_widths(scores, 7), random_widths(few, 7)
    assert all(torch.equal(whole[name], part[name]) for name in few)


def test_narrowest_bounds_how_far_layers_are_apart() -> None:
    """At 1 all widths are equal; the lower, the wider they spread."""
    spreads = []
    for narrowest in (0.0, 0.5, 0.9, 1.0):
        target = Target(rule="fraction", value=0.5, scope="random", narrowest=narrowest)
        plans = [
            select(saliency([40] * 6), S, target, None, Context(seed=seed)) for seed in range(20)
        ]
        spreads.append(sum(max(widths(p)) - min(widths(p)) for p in plans))
    assert spreads[-1] == 0
    assert all(a > b for a, b in pairwise(spreads))


def test_single_weights_get_random_densities_too() -> None:
    scores = {"a": torch.rand(5, 6), "b": torch.rand(3, 4, 2)}
    plan = select(
        scores, U, Target(rule="fraction", value=0.5, scope="random"), None, Context(seed=3)
    )
    assert (plan.kept, {n: m.shape for n, m in plan.keep.items()}) == (
        27,
        {"a": (5, 6), "b": (3, 4, 2)},
    )


@pytest.mark.parametrize("rule", ["macs", "params"])
def test_on_a_real_network_as_close_as_the_global_ranking(rule: str) -> None:
    """ResNet20, counted costs, 30, 50, 70 %: within a unit of the dearest group, mostly nearer than
    the same fraction of every layer."""
    info = DatasetInfo("cifar10", (3, 32, 32), 10)
    network = NetworkSpec("resnet_cifar", "resnet20", {"width": 8}, info)
    model, example = network.build(), network.example()
    units = network.units(model)
    torch.manual_seed(0)
    scores = {g.name: torch.rand(g.size) for g in units.prunable}
    cost = structured_cost(model, example, units, rule)
    dense = cost(select(scores, S, Target(rule="none")))

    def off(scope: str, value: float, seed: int) -> float:
        target = Target(rule=rule, value=value, scope=scope, closest=True)
        plan = select(scores, S, target, cost, Context(seed=seed))
        return abs(cost(plan) / dense - (1 - value))

    misses = [(s, off("random", v, s), off("layer", v, s)) for v in (0.3, 0.5, 0.7) for s in (0, 1)]
    assert max(m[1] for m in misses) <= 0.02
    assert sum(m[1] for m in misses) < sum(m[2] for m in misses)


def test_the_record_says_so_only_when_asked() -> None:
    target = Target(rule="macs", value=0.5, scope="random", narrowest=0.2, fill=True)
    told = target.model_dump(mode="json")
    assert (told["scope"], told["narrowest"]) == ("random", 0.2)
    assert Target.model_validate(told) == target
    assert "narrowest" not in Target(rule="macs", value=0.5).model_dump()
    for wrong in ({"narrowest": 0.2}, {"scope": "random", "narrowest": 1.1}):
        with pytest.raises(ValidationError, match="narrowest"):
            Target(rule="macs", value=0.5, **wrong)
