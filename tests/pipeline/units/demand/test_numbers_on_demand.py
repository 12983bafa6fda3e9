"""Numbers on demand: the values are those of the network, what is not asked for is not computed,
and the units are those found on the network's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pipeline.units.trace as trace
from pipeline.units.trace import trace_units
from pipeline.units.trace.demand import numbers as demand
from pipeline.units.trace.demand.numbers import Numbers
from tests.pipeline.units.cases import Net


class Running(TorchDispatchMode):
    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.numbers.run(func, args, kwargs or {})


class Computed(TorchDispatchMode):
    """Names of the operators that ran on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(isinstance(a, Tensor) and a.is_meta for a in args):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def in_place_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    before = y + 0
    y[:, 1:3].add_(1).mul_(y[:, 2:4])
    y.t()[0].zero_()
    return torch.cat([before, y])  # y is computed first


def rows_that_a_loop_writes(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(len(x)):
        out[i] = x[-i - 1] * i
    return out


def chosen_by_a_mask(x: Tensor) -> Tensor:
    best = x[(x.sum(1) > 0).nonzero()[:, 0]]
    best[best > 1] = torch.arange(1.0, device=x.device)
    return best[:, torch.tensor([True, False, True, True, False])]


def decided_by_a_number(x: Tensor) -> Tensor:
    return x.sort(1)[0] if x.max().item() > 0 else -x


def read_as_a_list(x: Tensor) -> Tensor:
    return x + sum(x.sum(1).argsort().tolist()) + len(x.unique()) + float(x.cpu()[0, 0])


def strided_and_typed(x: Tensor) -> Tensor:
    y = x.permute(1, 0).contiguous().expand(2, 5, 6)
    z = torch.view_as_complex(y.reshape(2, 15, 2).clone())
    return torch.view_as_real(z * z.conj()).to(torch.float64)


def into_a_tensor_of_the_cpu(x: Tensor) -> Tensor:
    out = torch.zeros(6, 5)
    out[:3] = x[3:] + torch.ones(5)
    return out * x


PROGRAMS = (
    *(in_place_through_a_view, rows_that_a_loop_writes, chosen_by_a_mask, decided_by_a_number),
    *(read_as_a_list, strided_and_typed, into_a_tensor_of_the_cpu),
)
ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("small", [0, demand.SMALL])
@pytest.mark.parametrize("program", PROGRAMS)
def test_values_are_those_of_the_program(
    program: Callable[[Tensor], Tensor], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand, "SMALL", small)
    numbers = Numbers()
    x = numbers.stand_in(ROWS)
    with Running(numbers):
        found = program(x)
    assert torch.equal(numbers.value(found), program(ROWS))
    assert torch.equal(numbers.value(x), ROWS)


class Boxes(nn.Module):
    """As a detector: what a head says decides which rows go on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.score, self.regions = nn.Conv2d(12, 1, 1), nn.Linear(12, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.body(self.stem(x).relu()).relu()
        scores = self.score(seen).flatten().sigmoid()
        best = scores.topk(min(5, int((scores > 0.1).sum()))).indices
        return self.last(self.regions(seen.flatten(2)[0].t()[best]).relu())


IMAGE = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def text(units: Any) -> str:
    return "\n".join(map(str, units.groups))


@pytest.mark.parametrize("large", [0, demand.LARGE])
def test_units_are_those_found_on_own_tensors(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    model = Boxes()
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].is_meta))
    want = text(trace_units(model, IMAGE))
    assert not all(seen)  # little networks run on their own tensors
    seen.clear()
    monkeypatch.setattr(trace, "LITTLE", 0)
    monkeypatch.setattr(demand, "LARGE", large)
    units = trace_units(model, IMAGE)
    assert all(seen)
    assert text(units) == want
    assert sum(g.size for g in units.prunable) == 8 + 12 + 6


@pytest.mark.parametrize(("large", "convolutions"), [(0, 0), (demand.LARGE, 3)])
def test_large_products_are_not_computed(
    large: int, convolutions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "LITTLE", 0)
    monkeypatch.setattr(demand, "LARGE", large)
    model = Boxes()
    with Computed() as computed:
        trace_units(model, IMAGE)
    assert computed.names.count("convolution") == convolutions
    assert "gt" in computed.names
    assert "addmm" not in computed.names  # what the boxes become decides nothing


def test_a_tensor_of_the_cpu_meets_one_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden * torch.linspace(0, 1, 6, device="cpu")[:, None])

    model = Net(forward, first=nn.Linear(5, 8), last=nn.Linear(8, 3))
    want = text(trace_units(model, ROWS))
    monkeypatch.setattr(trace, "LITTLE", 0)
    assert text(trace_units(model, ROWS)) == want
    assert sum(g.size for g in trace_units(model, ROWS).prunable) == 8


def test_the_users_random_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "LITTLE", 0)

    def forward(self: Any, x: Tensor) -> Tensor:
        noisy = self.first(x) + torch.rand(6, 1, device=x.device)
        return self.last(noisy[(noisy[:, 0] > 0).nonzero()[:, 0]])

    model = Net(forward, first=nn.Linear(5, 8), last=nn.Linear(8, 3))
    before = torch.get_rng_state()
    trace_units(model, ROWS)
    assert torch.equal(torch.get_rng_state(), before)
