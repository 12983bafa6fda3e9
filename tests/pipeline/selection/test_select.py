"""Selection: exact counts, stable ties, budgets, guards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.selection.select import Context, select
from pipeline.selection.target import Target
from pipeline.selection.threshold import keep_all_but, kth_smallest
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan

S, U = Granularity.STRUCTURED, Granularity.UNSTRUCTURED

scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]) | st.floats(0, 4, width=32), min_size=1),
    min_size=1,
    max_size=4,
)


def named(rows: list[list[float]]) -> dict[str, Tensor]:
    return {f"g{i}": torch.tensor(row) for i, row in enumerate(rows)}


def removed(plan: PruningPlan) -> int:
    return plan.total - plan.kept


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0, 0.999))
def test_fraction_is_the_head_of_a_stable_sort(rows: list[list[float]], fraction: float) -> None:
    saliency = named(rows)
    plan = select(saliency, U, Target(rule="fraction", value=fraction))
    flat = torch.cat(list(saliency.values()))
    keep = torch.ones(flat.numel(), dtype=torch.bool)
    count = math.floor(round(fraction * flat.numel(), 6))
    keep[torch.argsort(flat, stable=True)[:count]] = False
    assert torch.equal(torch.cat(list(plan.keep.values())), keep)


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0, 0.999), st.integers(0, 3), st.integers(1, 4))
def test_guards_hold(rows: list[list[float]], fraction: float, least: int, step: int) -> None:
    saliency = named(rows)
    target = Target(rule="fraction", value=fraction, min_units=least, round_to=step)
    count = math.floor(round(fraction * sum(len(r) for r in rows), 6))
    if count > sum(max(0, len(r) - least) for r in rows):
        with pytest.raises(ValueError, match="cannot remove"):
            select(saliency, S, target)
        return
    plan = select(saliency, S, target)
    exact = select(saliency, S, target.model_copy(update={"round_to": 1}))
    assert removed(exact) == count
    for name, mask in plan.keep.items():
        kept, size = int(mask.sum()), mask.numel()
        assert kept >= min(least, size)
        assert kept % step == 0 or kept == size
        assert bool((mask | ~exact.keep[name]).all())
        assert kept - int(exact.keep[name].sum()) < step
        if mask.any() and not mask.all():
            assert saliency[name][mask].min() >= saliency[name][~mask].max()


@settings(max_examples=40, deadline=None)
@given(scores, st.floats(0, 0.999))
def test_layer_scope_cuts_every_layer_alike(rows: list[list[float]], fraction: float) -> None:
    plan = select(named(rows), U, Target(rule="fraction", value=fraction, scope="layer"))
    for mask in plan.keep.values():
        assert int((~mask).sum()) == math.floor(round(fraction * mask.numel(), 6))


@settings(max_examples=40, deadline=None)
@given(scores, st.floats(0, 0.9), st.sampled_from(["global", "layer"]), st.integers(1, 3))
def test_budget_is_met_with_the_fewest_removed(
    rows: list[list[float]], value: float, scope: str, step: int
) -> None:
    saliency = named(rows)
    prices = {name: i + 1.0 for i, name in enumerate(saliency)}

    def cost(plan: PruningPlan) -> float:
        return sum(prices[n] * int(m.sum()) for n, m in plan.keep.items())

    dense = sum(prices[n] * s.numel() for n, s in saliency.items())
    target = Target(rule="macs", value=value, min_units=0, scope=scope, round_to=step)
    plan = select(saliency, S, target, cost)
    assert cost(plan) <= (1 - value) * dense
    if value == 0:
        assert removed(plan) == 0
    largest = max(prices.values()) * (step if scope == "global" else step * len(rows))
    assert cost(plan) >= (1 - value) * dense - largest - 1e-6
    budget = (1 - value) * dense
    near = select(saliency, S, target.model_copy(update={"closest": True}), cost)
    assert abs(cost(near) - budget) <= abs(cost(plan) - budget)
    assert set(removed_units(near)) <= set(removed_units(plan))


def removed_units(plan: PruningPlan) -> list[tuple[str, int]]:
    return [(n, int(i)) for n, m in plan.keep.items() for i in (~m).nonzero()]


def test_closest_may_exceed_the_budget_by_less() -> None:
    saliency = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    cost = lambda plan: 10.0 * plan.kept  # noqa: E731
    below = Target(rule="macs", value=0.35)  # budget 26: 20 is 6 below, 30 is 4 above
    assert select(saliency, S, below, cost).kept == 2
    assert select(saliency, S, below.model_copy(update={"closest": True}), cost).kept == 3


def test_filling_skips_what_is_too_dear() -> None:
    """a costs 10 each, b 3 each; a budget of 31 of 62 takes 2 of a and 3 of b."""
    saliency = {
        "a": torch.tensor([7.0, 9.0, 8.0, 6.0, 5.0]),
        "b": torch.tensor([9.5, 1.0, 4.0, 3.0]),
    }
    cost = lambda plan: 10.0 * int(plan.keep["a"].sum()) + 3.0 * int(plan.keep["b"].sum())  # noqa: E731
    target = Target(rule="macs", value=0.5)  # 31 of 62: the next unit, 7.0, would make it 33
    cut = select(saliency, S, target, cost)
    assert (cut.keep["a"].tolist(), cut.keep["b"].sum()) == ([False, True, True, False, False], 1)
    full = select(saliency, S, target.model_copy(update={"fill": True}), cost)
    assert full.keep["a"].tolist() == cut.keep["a"].tolist()
    assert full.keep["b"].tolist() == [True, False, True, True]
    assert cost(full) == 29
    both = target.model_copy(update={"fill": True, "closest": True})
    assert cost(select(saliency, S, both, cost)) == 32  # one b more: 1 above is closer than 2 below


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0, 0.9), st.integers(1, 3))
def test_filling_leaves_no_step_that_fits(rows: list[list[float]], value: float, step: int) -> None:
    saliency = named(rows)
    prices = {name: 1.0 + 2.5 * i for i, name in enumerate(saliency)}

    def cost(plan: PruningPlan) -> float:
        return sum(prices[n] * int(m.sum()) for n, m in plan.keep.items())

    dense = sum(prices[n] * s.numel() for n, s in saliency.items())
    target = Target(rule="params", value=value, min_units=0, round_to=step)
    cut = select(saliency, S, target, cost)
    full = select(saliency, S, target.model_copy(update={"fill": True}), cost)
    assert cost(cut) <= cost(full) <= (1 - value) * dense + 1e-9
    for name, mask in full.keep.items():
        assert bool((mask | ~cut.keep[name]).all())
        missing = mask.numel() - int(mask.sum())
        if missing:
            assert int(mask.sum()) % step == 0
            assert not mask.any() or saliency[name][mask].min() >= saliency[name][~mask].max()
            assert cost(full) + prices[name] * min(step, missing) > (1 - value) * dense - 1e-9
    both = target.model_copy(update={"fill": True, "closest": True})
    off = abs(cost(select(saliency, S, both, cost)) - (1 - value) * dense)
    assert off <= abs(cost(full) - (1 - value) * dense)


def test_filling_breaks_ties_by_position() -> None:
    """Of equal saliencies the later unit went last and comes back first."""
    saliency = {"a": torch.tensor([9.0, 9.0]), "b": torch.full((4,), 1.0)}
    prices = {"a": 4.0, "b": 1.0}

    def cost(plan: PruningPlan) -> float:
        return sum(prices[n] * int(m.sum()) for n, m in plan.keep.items())

    target = Target(rule="macs", value=0.75, min_units=0, fill=True)  # 3 of 12
    plan = select(saliency, S, target, cost)
    assert plan.keep["a"].tolist() == [False, False]
    assert plan.keep["b"].tolist() == [False, True, True, True]


def test_a_budget_may_refer_to_another_network() -> None:
    saliency = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    cost = lambda plan: 10.0 * plan.kept  # noqa: E731
    half = Target(rule="macs", value=0.5)
    assert select(saliency, S, half, cost).kept == 2
    assert select(saliency, S, half, cost, Context(reference=60.0)).kept == 3
    assert select(saliency, S, half, cost, Context(reference=400.0)).sparsity == 0.0


def test_zeros_removes_exactly_the_zeros() -> None:
    saliency = {"a": torch.tensor([0.0, 1e-30, 2.0]), "b": torch.zeros(2)}
    plan = select(saliency, S, Target(rule="zeros", min_units=2, round_to=4))
    assert plan.keep["a"].tolist() == [False, True, True]
    assert plan.keep["b"].tolist() == [False, False]


def test_none_keeps_all() -> None:
    assert select({"a": torch.zeros(3)}, S, Target(rule="none")).sparsity == 0


def test_min_units_does_not_cost_the_count() -> None:
    """A protected unit is replaced by the next one in another group."""
    saliency = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([1.0, 2.0])}
    plan = select(saliency, S, Target(rule="fraction", value=0.5))
    assert plan.keep["a"].tolist() == [False, True]
    assert plan.keep["b"].tolist() == [False, True]


def test_refusals_in_words() -> None:
    bad = {"good": torch.ones(2), "layer.conv": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="saliency of 'layer.conv' is not finite"):
        select(bad, S, Target(rule="zeros"))
    with pytest.raises(ValueError, match="not finite"):
        select({"a": torch.tensor([float("inf")])}, S, Target(rule="zeros"))
    with pytest.raises(ValueError, match="'a' is negative"):
        select({"a": torch.tensor([-1.0])}, S, Target(rule="zeros"))
    with pytest.raises(ValueError, match="macs needs a cost function"):
        select({"a": torch.ones(1)}, S, Target(rule="macs", value=0.5))
    target = Target(rule="params", value=0.9)
    with pytest.raises(ValueError, match=r"still costs 0.5000 of the dense network"):
        select({"a": torch.ones(2)}, S, target, lambda p: float(p.kept))


def test_a_target_tells_what_was_asked_and_no_more() -> None:
    """Records of before `fill` and `latency` keep their bytes."""
    before = ("rule", "value", "scope", "round_to", "min_units", "closest")
    assert tuple(Target(rule="macs", value=0.5).model_dump(mode="json")) == before
    assert Target(rule="macs", value=0.5, fill=True).model_dump(mode="json")["fill"] is True
    asked = Target(rule="latency", value=0.5, latency={"threads": 2}).model_dump(mode="json")
    assert asked["latency"] == {"batch_size": 1, "threads": 2, "repeats": 20, "probes": 20}
    assert Target(rule="latency", value=0.5).model_dump(mode="json")["latency"]["batch_size"] == 1
    assert Target.model_validate(asked).probe.threads == 2


def test_target_refuses_nonsense() -> None:
    for wrong in (
        {"rule": "fraction", "value": 1.0},
        {"rule": "fraction", "value": -0.1},
        {"rule": "flops"},
        {"rule": "none", "ratio": 1},
        {"rule": "none", "round_to": 0},
        {"rule": "fraction", "value": 0.5, "fill": True},
        {"rule": "macs", "value": 0.5, "scope": "layer", "fill": True},
        {"rule": "macs", "value": 0.5, "latency": {"batch_size": 1}},
        {"rule": "latency", "value": 0.5, "closest": True},
        {"rule": "latency", "value": 0.5, "latency": {"repeats": 1}},
    ):
        with pytest.raises(ValidationError):
            Target(**wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "sorted", "few", "constant", "spikes"])
def test_kth_smallest_of_many_is_exact(kind: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x = {
        "normal": torch.randn(300_000, generator=g).abs(),
        "sorted": torch.arange(300_000).float(),
        "few": torch.randint(0, 3, (300_000,), generator=g).float(),
        "constant": torch.ones(300_000),
        # The regular sample sees only zeros: the bracket must miss and still be right.
        "spikes": torch.rand(300_000, generator=g) * (torch.arange(300_000) % 9 != 4),
    }[kind].to(dtype)
    ordered = x.sort().values
    for k in (1, 2, 33_334, 150_000, 299_999, 300_000):
        assert kth_smallest([x[:100_000].view(10, -1), x[100_000:]], k) == ordered[k - 1]


def test_ties_over_tensors_go_in_order() -> None:
    keep = keep_all_but({"a": torch.ones(2, 2), "b": torch.tensor([0.0, 1.0, 1.0])}, 4)
    assert keep["a"].tolist() == [[False, False], [False, True]]
    assert keep["b"].tolist() == [False, True, True]


def test_layers_may_have_a_fraction_of_their_own() -> None:
    scores = {"fc1.weight": torch.arange(10.0) + 1, "classifier.weight": torch.arange(10.0) + 1}
    asked = Target(rule="fraction", value=0.4, scope="layer", layer_values={"classifier": 0.2})
    plan = select(scores, Granularity.UNSTRUCTURED, asked)
    assert {name: int(mask.sum()) for name, mask in plan.keep.items()} == {
        "fc1.weight": 6,
        "classifier.weight": 8,
    }
    with pytest.raises(ValueError, match="target.layer_values: 'fc9' is no layer here"):
        select(scores, Granularity.UNSTRUCTURED, asked.model_copy(
            update={"layer_values": {"fc9": 0.2}}))  # fmt: skip
    with pytest.raises(ValidationError, match="needs rule: fraction and scope: layer"):
        Target(rule="fraction", value=0.4, layer_values={"classifier": 0.2})
