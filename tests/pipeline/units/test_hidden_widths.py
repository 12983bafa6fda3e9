"""Widths inside constants, dead layers whose weight other code reads, rules that raise, leftovers
of pinned groups."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.measure.count import MacsModel, count
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from pipeline.units.trace.tracer import Tracer
from tests.pipeline.units.cases import Net
from tests.pipeline.units.laws import assert_laws, random_plan

EXAMPLE = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def two_layers(between: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 8), "last": nn.Linear(8, 3)}
    return Net(lambda self, x: self.last(between(self.first(x))), **layers)


WIDTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "tensor": lambda x: x / torch.sqrt(torch.tensor(x.shape[-1])),
    "tensor on the device": lambda x: x * torch.tensor([1 / x.shape[-1]], device=x.device),
    "new_tensor": lambda x: x * x.new_tensor(1 / x.shape[-1]),
    "as_tensor": lambda x: x * torch.as_tensor(float(x.shape[-1]), device=x.device),
    "new_full": lambda x: x * x.new_full((1,), 1 / x.shape[-1]),
    "linspace": lambda x: x * torch.linspace(0, x.shape[-1], 3, device=x.device)[1],
    "arange": lambda x: x * torch.arange(x.shape[-1], x.shape[-1] + 2, device=x.device)[1],
    "from numpy": lambda x: x * torch.from_numpy(math.sqrt(x.shape[-1]) * torch.ones(1).numpy()),
    "script": lambda x: x * _scripted(x),
    "alpha": lambda x: torch.addmm(x[:, :1], x, x.T, alpha=1 / x.shape[-1]).sum(1, True) * x,
    "roll": lambda x: torch.roll(x, x.shape[-1] // 4, 0),
    "row": lambda x: x * x[x.shape[-1] // 4],
}


def _root(x: Tensor) -> Tensor:
    return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float))


def _scripted(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; networks still use it
        return torch.jit.script(_root)(x)


@pytest.mark.parametrize(
    ("followed", "number"),
    [
        ((1,), lambda w: w[1]),
        ((0, 3), lambda w: w[0] * 100 + w[3]),
        ((0, 1, 2, 3, 4), lambda w: max(w[2:])),  # no half changes it by itself
    ],
)
def test_only_the_widths_that_a_number_follows_stay(
    followed: tuple[int, ...], number: Callable[[list[int]], int]
) -> None:
    """No tensor that enters the operator says which they are."""

    def run(self: Any, x: Tensor) -> Tensor:
        widths = []
        for layer in self.layers:
            x = F.relu(layer(x))
            widths.append(x.shape[-1])
        return self.last(x) * torch.sqrt(torch.tensor(float(number(widths))))

    def build() -> nn.Module:
        torch.manual_seed(0)
        sizes = (6, 9, 9, 9, 9, 9)
        layers = (nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        return Net(run, layers=nn.ModuleList(layers), last=nn.Linear(9, 3))

    units = trace_units(build(), EXAMPLE)
    found = {g.name: g.prunable for g in units.groups if g.name != "last"}
    assert found == {f"layers.{i}": i not in followed for i in range(5)}
    assert_laws(build, EXAMPLE, units, random_plan(units, 0.5, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_that_enters_the_values_keeps_the_channels(name: str) -> None:
    units = trace_units(two_layers(WIDTHS[name]), EXAMPLE)
    assert not [g.name for g in units.prunable]


@pytest.mark.parametrize("name", ["tensor", "as_tensor"])
def test_a_constant_of_its_own_keeps_nothing(name: str) -> None:
    make = {"tensor": torch.tensor, "as_tensor": torch.as_tensor}[name]
    units = trace_units(two_layers(lambda x: x * make(0.5, device=x.device)), EXAMPLE)
    assert [g.size for g in units.prunable] == [8]


def dead(units: Units, names: tuple[str, ...]) -> PruningPlan:
    masks = {n: torch.zeros(units.by_name()[n].size, dtype=torch.bool) for n in names}
    return PruningPlan(Granularity.STRUCTURED, masks)


def tied_decoder() -> nn.Module:
    """The decoder multiplies by the encoder's weight itself."""
    torch.manual_seed(0)
    layers = {"encoder": nn.Linear(6, 8), "middle": nn.Linear(8, 5), "back": nn.Linear(5, 8)}

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.back(self.middle(self.encoder(x).relu())).relu()
        return F.linear(hidden, self.encoder.weight.t())

    return Net(forward, **layers)


def test_a_dead_layer_stays_where_other_code_reads_its_weight() -> None:
    units = trace_units(tied_decoder(), EXAMPLE)
    plan = dead(units, ("encoder", "middle"))
    shrunk = assert_laws(tied_decoder, EXAMPLE, units, plan)
    assert tuple(shrunk.encoder.weight.shape) == (1, 6)
    counted, costs = count(shrunk.float(), EXAMPLE), MacsModel(tied_decoder(), EXAMPLE, units)
    assert (costs.params(plan), costs.macs(plan)) == (counted.params, counted.macs)


def test_a_dead_projection_that_torch_itself_reads() -> None:
    """`nn.MultiheadAttention` takes the weight of `out_proj`, not its forward."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.attention(x, x, x, need_weights=False)[0])

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Block()

    example = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    units = trace_units(build(), example)
    assert_laws(build, example, units, dead(units, ("attention.out_proj",)))


def test_states_that_are_summed_by_one_vector() -> None:
    """(c, n) @ (n, 1), as in a state space model."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = {"inner": nn.Linear(6, 8), "b": nn.Linear(8, 4), "last": nn.Linear(8, 3)}

        def forward(self: Any, x: Tensor) -> Tensor:
            inner = self.inner(x)
            b = self.b(inner)
            state = inner[:, :, None] * b[:, None, :]
            return self.last((state @ b[:, :, None])[:, :, 0])

        return Net(forward, **layers)

    units = trace_units(build(), EXAMPLE)
    assert_laws(build, EXAMPLE, units, random_plan(units, 0.5, torch.Generator().manual_seed(0)))


def test_a_rule_that_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.units.trace import rules

    def broken(t: Tracer, call: Any) -> None:
        raise ValueError("not foreseen")

    monkeypatch.setitem(rules.RULES, "mean", broken)
    units = trace_units(two_layers(lambda x: x + x.mean(0)), EXAMPLE)
    (group,) = (g for g in units.groups if g.name == "first")
    assert not group.prunable
    assert "operator mean, whose rule fails here (ValueError)" in group.reason


def test_a_failure_far_from_its_cause_keeps_whole_groups() -> None:
    """Code that takes another path at another width: no channel is left behind on its own."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = {"first": nn.Linear(6, 8), "last": nn.Linear(8, 3), "head": nn.Linear(3, 3)}

        def forward(self: Any, x: Tensor) -> Tensor:
            hidden = self.first(x)
            extra = torch.ones(2, device=x.device) if hidden.shape[-1] == 8 else x.new_zeros(1)
            return self.head(self.last(hidden.relu()).tanh()) * extra.sum()

        return Net(forward, **layers)

    units = trace_units(build(), EXAMPLE)
    assert sorted(g.size for g in units.groups) == [3, 3, 8]


def test_units_with_leftovers_can_be_pickled() -> None:
    def build() -> nn.Module:
        return two_layers(lambda x: torch.sigmoid(x) * 2)

    units = pickle.loads(pickle.dumps(trace_units(build(), EXAMPLE)))
    assert len(units.leftovers) == 1
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    assert_laws(build, EXAMPLE, units, plan)
