"""Whole branches of a residual stream as units."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.api import zero_channels
from pipeline.measure.count import MacsModel, count
from pipeline.measure.describe import as_text, describe
from pipeline.selection.saliency import compute
from pipeline.selection.select import Context, select
from pipeline.selection.target import Target
from pipeline.units.constant import Constant
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import AllDouble
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, randomise_bn, relative
from tests.pipeline.units.nets.residual import Convolutions, Read, Shared, Transformer

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "convolutions": (Convolutions, IMAGE, ["blocks.0.4 (branch)", "blocks.1.4 (branch)"]),
    "scaled": (Transformer, TOKENS, ["gamma (branch)", "down (branch)"]),
    "plain": (lambda: Transformer(False), TOKENS, ["proj (branch)", "down (branch)"]),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return build().eval()


def branches_of(units: Units) -> list[str]:
    return [g.name for g in units.groups if g.kind == "branch"]


def removing(*names: str) -> PruningPlan:
    return PruningPlan(Granularity.STRUCTURED, {n: torch.tensor([False]) for n in names})


@pytest.mark.parametrize("kind", NETWORKS)
def test_masked_branches_equal_shrunk_ones(kind: str) -> None:
    build, example, names = NETWORKS[kind]
    units = trace_units(seeded(build), example, branches=True)
    assert branches_of(units) == names
    plans = [removing(name) for name in names] + [removing(*names)]
    half = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    plans += [PruningPlan(half.granularity, {**half.keep, **plan.keep}) for plan in plans]
    for plan in plans:
        assert_laws(lambda: seeded(build), example, units, plan)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_training_brought_to_zero_goes(kind: str) -> None:
    """Nothing is cut while nothing is zero; then a branch goes and no output changes."""
    build, example, names = NETWORKS[kind]
    model = randomise_bn(seeded(build), torch.Generator().manual_seed(1))
    units = trace_units(model, example, branches=True)
    assert zero_channels(model, units).sparsity == 0.0
    group = units.by_name()[names[0]]
    with torch.no_grad():
        for s in group.zig:
            model.get_parameter(s.tensor).zero_()
    plan = zero_channels(model, units)
    assert [n for n, mask in plan.keep.items() if not mask.all()] == [names[0]]
    small = copy.deepcopy(model)
    shrink(plan, small, units)
    assert relative(outputs(model, example), outputs(small, example)) == 0.0
    assert any(isinstance(m, Constant) for m in small.modules())
    inside = {s.tensor for s in group.slices} - {"gamma"}
    assert inside.isdisjoint(small.state_dict())


@pytest.mark.parametrize("kind", NETWORKS)
def test_costs_are_those_of_the_shrunk_network(kind: str) -> None:
    build, example, names = NETWORKS[kind]
    units = trace_units(seeded(build), example, branches=True)
    costs = MacsModel(seeded(build), example, units)
    half = random_plan(units, 0.5, torch.Generator().manual_seed(0)).keep
    for keep in ({}, half):
        plan = PruningPlan(Granularity.STRUCTURED, {**keep, **removing(*names).keep})
        small = seeded(build)
        shrink(plan, small, units)
        counted = count(small, example)
        assert (costs.params(plan), costs.macs(plan)) == (counted.params, counted.macs)


@pytest.mark.parametrize("rule", ["macs", "params", "fraction"])
def test_rules_take_branches(rule: str) -> None:
    build, example, names = NETWORKS["plain"]
    model = seeded(build)
    units = trace_units(model, example, branches=True)
    scores = compute("magnitude", Granularity.STRUCTURED, model, units)
    own = {name: scores[name] for name in names}
    costs = MacsModel(model, example, units)
    cost = costs.macs if rule == "macs" else costs.params
    target = Target(rule=rule, value=0.1 if rule != "fraction" else 0.5)  # type: ignore[arg-type]
    plan = select(own, Granularity.STRUCTURED, target, cost, Context.of(units))
    least = min(names, key=lambda n: float(scores[n]))
    assert [n for n, mask in plan.keep.items() if not mask.all()] == [least]


def test_without_being_asked_there_are_none() -> None:
    assert not branches_of(trace_units(seeded(Convolutions), IMAGE))


@pytest.mark.parametrize("build", [Shared, Read])
def test_not_offered(build: Callable[[], nn.Module]) -> None:
    assert not branches_of(trace_units(seeded(build), TOKENS, branches=True))


def test_a_decoder() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = transformers.LlamaConfig(**sizes, **heads)
    words = {"input_ids": torch.arange(10)[None] + 3, "use_cache": False}

    def make() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = transformers.LlamaForCausalLM(config)
        return made.eval()

    units = trace_units(make(), words, branches=True)
    names = branches_of(units)
    assert len(names) == 4
    half = random_plan(units, 0.5, torch.Generator().manual_seed(0)).keep
    for keep in ({}, half):
        plan = PruningPlan(Granularity.STRUCTURED, {**keep, **removing(*names[1:3]).keep})
        with AllDouble():
            small = assert_laws(make, words, units, plan)
        assert isinstance(small.get_submodule("model.layers.0.mlp.down_proj"), Constant)
        assert isinstance(small.get_submodule("model.layers.0.mlp.gate_proj"), Constant)
        left = small.get_submodule("model.layers.0.post_attention_layernorm")
        assert isinstance(left, nn.Identity)


def test_units_shows_them() -> None:
    model = seeded(Convolutions)
    text = list(as_text(describe(model, IMAGE, trace_units(model, IMAGE, branches=True))))
    assert "2 of 2 branches" in text[0]
    at = text.index("blocks.0.4 (branch) [1]")
    assert text[at + 1].startswith("  one branch")
    assert any("blocks.0.0" in line for line in text[at : at + 6])
