"""Whole experts of a mixture as units."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.measure.count import MacsModel, count
from pipeline.measure.describe import as_text, describe
from pipeline.selection.saliency import KNOWN, compute
from pipeline.selection.select import Context, select
from pipeline.selection.target import Target
from pipeline.units.enforce import enforce
from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import AllDouble
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, relative
from tests.pipeline.units.nets.experts import Around, Biased, Listed, Stacked, Told, Written

TOKENS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
MIXTURES = {"listed": Listed, "stacked": Stacked, "biased": Biased}
NAME = "mixture.experts (experts)"


def build(mixture: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return Around(mixture()).eval()


def experts_of(units: Units) -> ChannelGroup:
    found = [g for g in units.groups if g.kind == "expert"]
    assert len(found) == 1
    return found[0]


def without(group: ChannelGroup, *gone: int) -> PruningPlan:
    mask = torch.ones(group.size, dtype=torch.bool)
    mask[list(gone)] = False
    return PruningPlan(Granularity.STRUCTURED, {group.name: mask})


@pytest.mark.parametrize("kind", MIXTURES)
def test_masked_experts_equal_shrunk_ones(kind: str) -> None:
    model = build(MIXTURES[kind])
    units = trace_units(model, TOKENS)
    group = experts_of(units)
    assert group.prunable, group.reason
    assert group.size == 5
    for plan in (without(group, 0), without(group, 1, 3), without(group, 2, 3, 4)):
        small = assert_laws(lambda: build(MIXTURES[kind]), TOKENS, units, plan)
        assert (
            relative(
                outputs(small, TOKENS.double()),
                outputs(build(MIXTURES[kind]).double(), TOKENS.double()),
            )
            > 1e-3
        )
    assert_laws(
        lambda: build(MIXTURES[kind]), TOKENS, units, random_plan(units, 0.5, torch.Generator())
    )


def test_an_expert_of_zeros_is_not_absent() -> None:
    """Its router still gives it a share, so that zeros and surgery differ: no rule takes it."""
    model = build(Listed)
    units = trace_units(model, TOKENS)
    group = experts_of(units)
    zeroed, shrunk = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for p in (*zeroed.mixture.experts[1].parameters(), zeroed.mixture.gate.weight[1]):
            p.zero_()
    shrink(without(group, 1), shrunk, units)
    assert relative(outputs(zeroed, TOKENS), outputs(shrunk, TOKENS)) > 1e-3
    scores = compute("magnitude", Granularity.STRUCTURED, zeroed, units)
    plan = select(scores, Granularity.STRUCTURED, Target(rule="zeros"))
    assert plan.keep[group.name].all()
    assert group not in units.channels


def test_a_masked_router_never_chooses_again() -> None:
    model = build(Listed)
    units = trace_units(model, TOKENS)
    enforce(without(experts_of(units), 0, 4), model, units)
    chosen: list[Tensor] = []
    model.mixture.gate.register_forward_hook(lambda _m, _i, out: chosen.append(out.topk(2)[1]))
    outputs(model, TOKENS)
    assert set(chosen[0].unique().tolist()) <= {1, 2, 3}


def test_a_router_keeps_as_many_as_it_picks() -> None:
    model = build(Listed)
    units = trace_units(model, TOKENS)
    group = experts_of(units)
    assert group.least == 2
    with pytest.raises(ValueError, match=r"would keep 1 of 5 experts, and its router picks 2"):
        shrink(without(group, 0, 1, 2, 3), model, units)
    scores = {group.name: torch.arange(1.0, 6.0)}
    plan = select(
        scores, Granularity.STRUCTURED, Target(rule="fraction", value=0.6), None, Context.of(units)
    )
    assert plan.keep[group.name].tolist() == [False, False, False, True, True]
    with pytest.raises(ValueError, match="cannot remove 4 of 5 units"):
        select(
            scores,
            Granularity.STRUCTURED,
            Target(rule="fraction", value=0.8),
            None,
            Context.of(units),
        )


def test_a_number_of_experts_in_the_code_is_refused() -> None:
    units = trace_units(build(Written), TOKENS)
    assert experts_of(units).reason == "the layer computes something else with fewer experts"


def test_a_router_that_picks_all_is_refused() -> None:
    units = trace_units(build(lambda: Listed(k=5)), TOKENS)
    assert experts_of(units).reason == "the router picks 5 of 5 experts"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("output", "it reaches the network's output"),
        ("read", "its weights are read elsewhere (the network)"),
    ],
)
def test_logits_that_others_read_stay(where: str, reason: str) -> None:
    torch.manual_seed(3)
    group = experts_of(trace_units(Told(where).eval(), TOKENS))
    assert (group.prunable, group.reason) == (False, reason)


def test_never_prune_holds_them() -> None:
    units = trace_units(build(Listed), TOKENS, ("mixture.gate",))
    assert experts_of(units).reason == "never_prune names mixture.gate"


def test_a_list_of_layers_is_no_mixture() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            out: Tensor = self.head(x)
            return out

    units = trace_units(Deep(), TOKENS)
    assert all(g.kind == "channel" for g in units.groups)


@pytest.mark.parametrize("kind", MIXTURES)
def test_costs_are_those_of_the_shrunk_network(kind: str) -> None:
    """Of routed experts those left run for those that went: their MACs stay."""
    model = build(MIXTURES[kind])
    units = trace_units(model, TOKENS)
    costs = MacsModel(model, TOKENS, units)
    half = {g.name: torch.arange(g.size) % 2 == 0 for g in units.prunable if g.kind == "channel"}
    experts = without(experts_of(units), 0, 1).keep
    wide = {name: half[name] for name in list(half)[-1:]}
    for plan in (
        without(experts_of(units), 1, 3),
        PruningPlan(Granularity.STRUCTURED, half | experts),
        PruningPlan(Granularity.STRUCTURED, wide | experts),
    ):
        small = copy.deepcopy(model)
        shrink(plan, small, units)
        counted = count(small, TOKENS)
        assert (costs.params(plan), costs.macs(plan)) == (counted.params, counted.macs)


def test_groups_that_lose_nothing_do_not_make_a_cost_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where experts go and others are narrowed is a copy of the network cut and counted."""
    model = build(Listed)
    units = trace_units(model, TOKENS)
    costs = MacsModel(model, TOKENS, units)
    whole = {g.name: torch.ones(g.size, dtype=torch.bool) for g in units.prunable}
    narrow = {g.name: torch.arange(g.size) % 2 == 0 for g in units.prunable if g.kind == "channel"}
    for cut in (narrow, without(experts_of(units), 1).keep):
        short = costs.macs(PruningPlan(Granularity.STRUCTURED, cut))
        plan = PruningPlan(Granularity.STRUCTURED, whole | cut)
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.measure.count.shrink", pytest.fail)
            assert costs.macs(plan) == short


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("name", sorted(set(KNOWN[Granularity.STRUCTURED]) - {"bn_scale"}))
@pytest.mark.parametrize("rule", ["params", "fraction"])
def test_rules_handle_experts(kind: str, name: str, rule: str) -> None:
    model = build(MIXTURES[kind])
    units = trace_units(model, TOKENS)
    batch = (TOKENS, torch.zeros(2, 3))
    data = ([batch], lambda net, b: (net(b[0]) ** 2).mean())
    scores = compute(name, Granularity.STRUCTURED, model, units, 0, data)
    costs = MacsModel(model, TOKENS, units)
    target = Target(rule=rule, value=0.4)  # type: ignore[arg-type]
    own = {group.name: scores[group.name] for group in (experts_of(units),)}
    plan = select(own, Granularity.STRUCTURED, target, costs.params, Context.of(units))
    dense = costs.params(without(experts_of(units)))
    shrink(plan, model, units)
    left = sum(p.numel() for p in model.parameters())
    assert left == costs.params(plan) <= (0.6 if rule == "params" else 0.99) * dense


@pytest.mark.parametrize("rule", ["macs", "latency"])
def test_budgets_of_time_are_met_by_what_the_remaining_experts_compute(rule: str) -> None:
    """Fewer experts to choose from save no MACs: narrower ones do, and both may go."""
    model = build(Listed)
    units = trace_units(model, TOKENS)
    costs = MacsModel(model, TOKENS, units)
    dense = count(model, TOKENS).macs
    scores = compute("magnitude", Granularity.STRUCTURED, model, units)
    scores[NAME][[1, 3]] = 1e-6  # the first to go
    cost = costs.macs if rule == "macs" else lambda plan: costs.macs(plan) / dense
    target = Target(rule=rule, value=0.3)  # type: ignore[arg-type]
    plan = select(scores, Granularity.STRUCTURED, target, cost, Context.of(units))
    shrink(plan, model, units)
    assert count(model, TOKENS).macs == costs.macs(plan) <= 0.7 * dense
    assert plan.keep[NAME].tolist() == [True, False, True, False, True]


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 12},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 12},
    "olmoe": {"num_experts": 4, "intermediate_size": 12},
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_architectures_of_transformers(kind: str) -> None:
    """Router rows, stacked weights and the numbers in the code go; the rest is exact in float64."""
    transformers = pytest.importorskip("transformers")
    own = {**SIZES, **EXPERTS[kind], "num_hidden_layers": 1, "num_experts_per_tok": 2}
    config = transformers.AutoConfig.for_model(kind, head_dim=8, pad_token_id=0, **own)

    def make() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        made.set_experts_implementation("eager")
        return made.eval()

    words = {"input_ids": torch.arange(10)[None] + 3, "use_cache": False}
    units = trace_units(make(), words)
    group = experts_of(units)
    assert (group.size, group.least, group.prunable) == (4, 2, True), group.reason
    for plan in (without(group, 1), random_plan(units, 0.5, torch.Generator().manual_seed(0))):
        with AllDouble():
            assert_laws(make, words, units, plan)


def test_units_shows_them() -> None:
    model = build(Listed)
    text = "\n".join(as_text(describe(model, TOKENS, trace_units(model, TOKENS))))
    assert "5 of 5 experts" in text.splitlines()[0]
    assert f"{NAME} [5]" in text
    assert "one expert" in text
    assert "mixture.gate, mixture.experts" in text
