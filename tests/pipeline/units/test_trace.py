"""Units of small networks: counted by hand, and the two laws on every one of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan
from tests.pipeline.units.nets import CASES, Net, conv, image


def units_of(name: str) -> Units:
    return CASES[name].units()


@pytest.mark.parametrize("name", CASES)
def test_units_are_those_counted_by_hand(name: str) -> None:
    units = units_of(name)
    assert sum(g.size for g in units.prunable) == CASES[name].prunable, "\n".join(
        str(g) for g in units.groups
    )
    assert all(g.reason for g in units.groups if not g.prunable)
    assert len(units.by_name()) == len(units.groups)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.prunable])
def test_laws(name: str, fraction: float) -> None:
    units = units_of(name)
    plan = random_plan(units, fraction, torch.Generator().manual_seed(3))
    assert plan.kept < plan.total
    for dtype in (torch.float64, torch.float32):
        assert_laws(CASES[name].build, CASES[name].example, units, plan, dtype)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.prunable])
def test_one_survivor_and_dead_groups(name: str) -> None:
    """Every group alone: reduced to its last channel, then to none."""
    units = units_of(name)
    for group in units.prunable:
        one = torch.zeros(group.size, dtype=torch.bool)
        none = one.clone()
        one[-1] = True
        for mask in (one, none):
            plan = PruningPlan(Granularity.STRUCTURED, {group.name: mask})
            assert_laws(CASES[name].build, CASES[name].example, units, plan)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.prunable])
def test_everything_dead(name: str) -> None:
    units = units_of(name)
    keep = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in units.prunable}
    build, example = CASES[name].build, CASES[name].example

    def with_an_offset() -> nn.Module:
        # Without it some outputs are exactly zero and nothing could be compared.
        return Net(lambda n, *x: (n.net(*x), torch.ones(1)), net=build())

    moved = {f"net.{k}": v for k, v in keep.items()}
    traced = trace_units(with_an_offset(), example, attention=CASES[name].attention)
    assert {g.name for g in traced.prunable} == set(moved)
    plan = PruningPlan(Granularity.STRUCTURED, moved)
    assert_laws(with_an_offset, example, traced, plan)


@pytest.mark.parametrize(
    ("name", "group", "words"),
    [
        ("sigmoid_before_padding", "0", "sigmoid of zero is not zero"),
        ("added_to_input", "a", "channels that must stay"),
        ("inner_output", "a", "network's output"),
        ("mean_over_channels", "a", "mean runs over its channels"),
        ("unknown_operator", "a", "operator sort, for which there is no rule"),
        ("channel_slice", "a", "select cuts its channels at a fixed position"),
        ("layer_norm", "a", "layer norm takes the mean over its channels"),
        ("size_in_the_code", "a", "the smaller network fails at view"),
        ("width_in_a_factor", "a", "number that depends on the width"),
        ("spatial_gate", "gate", "one channel is spread over many"),
        ("shared_with_input", "c", "also serves channels that must stay"),
    ],
)
def test_reasons_in_words(name: str, group: str, words: str) -> None:
    found = units_of(name).by_name()[group]
    assert not found.prunable
    assert words in found.reason


def test_never_prune_pins_what_a_module_returns() -> None:
    case = CASES["residual"]
    units = trace_units(case.build(), case.example, ("a",))
    assert [g.name for g in units.prunable] == ["stem"]
    assert "never_prune names a" in units.by_name()["a"].reason
    with pytest.raises(ValueError, match="never_prune: no module b9"):
        trace_units(case.build(), case.example, ("b9",))


def test_slices_name_dimension_role_and_positions() -> None:
    group = units_of("mlp_after_flatten").groups[0]
    assert group.name == "0"
    assert [(s.tensor, s.dim, s.role) for s in group.slices] == [
        ("0.weight", 0, "producer"),
        ("0.bias", 0, "producer"),
        ("3.weight", 1, "consumer"),
    ]
    assert group.slices[0].plain
    assert torch.equal(group.slices[2].index, torch.arange(6 * 64).view(6, 64))


def test_concat_keeps_offsets() -> None:
    groups = units_of("concat").by_name()
    scale = next(s for s in groups["b"].slices if s.tensor == "bn2.weight")
    assert scale.index[:, 0].tolist() == [10, 11, 12, 13, 14]
    twice = next(s for s in groups["a"].slices if s.tensor == "bn2.weight")
    assert twice.index.tolist() == [[4 + i, 15 + i] for i in range(6)]


def test_tracing_changes_nothing() -> None:
    model = CASES["instance_norm"].build().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    trace_units(model, CASES["instance_norm"].example)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model[0].weight.requires_grad
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_a_network_that_reads_values_is_traced_on_real_tensors() -> None:
    def run(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.a(x)
        if float(x.sum()) != 1e9:
            y = torch.relu(y)
        return n.b(y).mean((2, 3))

    units = trace_units(Net(run, a=conv(3, 6), b=conv(6, 4)), image())
    assert [g.name for g in units.prunable] == ["a"]


def test_errors_of_the_network_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        trace_units(nn.Sequential(conv(3, 6), conv(5, 4)), image())


def test_two_dead_neighbours_and_tied_weights() -> None:
    """Tied embeddings stay tied after surgery."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        net = Net(
            lambda n, x: n.out(n.up(torch.relu(n.down(n.table(x))))),
            **{"table": nn.Embedding(10, 6), "down": nn.Linear(6, 5), "up": nn.Linear(5, 6)},
            out=nn.Linear(6, 10, bias=False),
        )
        net.out.weight = net.table.weight
        return net

    example = torch.tensor([[1, 2, 3]])
    units = trace_units(build(), example)
    assert sum(g.size for g in units.prunable) == 6 + 5
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    shrunk = assert_laws(build, example, units, plan)
    assert shrunk.out.weight is shrunk.table.weight
    assert shrunk.table.weight.shape == (10, 3)
