"""A module that would run as before is not run again, and nothing that is found depends on that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.units.groups import Units
from pipeline.units.module_state import reached
from pipeline.units.trace import trace_units
from pipeline.units.trace.shadow import along
from pipeline.units.trace.skipped import modules
from pipeline.units.trace.steps import Entered, Step
from tests.pipeline.units.skipped.test_sequences import said

MANY = modules.FEW


class Block(nn.Module):
    """Its code reads a width from an attribute, or writes it as a number."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.wide, self.written = 12, written
        self.inside, self.out = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(MANY):
            x = x.relu()
        return self.between(self.out(self.inside(x).view(-1, 12 if self.written else self.wide)))

    def between(self, x: Tensor) -> Tensor:
        return x


class Caching(Block):
    """Makes a table at its first call."""

    def __init__(self, written: bool, cache: dict[str, Tensor] | None = None) -> None:
        super().__init__(written)
        self.cache: dict[str, Tensor] = {} if cache is None else cache
        self.table = nn.Parameter(torch.rand(6))

    def between(self, x: Tensor) -> Tensor:
        if "table" not in self.cache:
            self.cache["table"] = self.table.exp()
        return x * self.cache["table"]


class Leaving(Block):
    """Leaves a number in itself that another module reads."""

    def between(self, x: Tensor) -> Tensor:
        self.left = x.relu()
        return x


class Reading(Block):
    def __init__(self, written: bool, others: list[nn.Module]) -> None:
        super().__init__(written)
        self.others = others  # no child of it

    def between(self, x: Tensor) -> Tensor:
        return x + self.others[0].left + self.others[0].wide  # type: ignore[operator]


class Twice(nn.Sequential):
    """Every module runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self, *self):
            x = layer(x)
        return x


def nets() -> dict[str, nn.Module]:
    shared: dict[str, Tensor] = {}
    leaving = Leaving(False)
    found = {
        "plain": [Block(False), Block(True), Block(False), Block(True)],
        "caching": [Caching(False), Caching(True), Caching(False), Caching(True)],
        "one cache": [Caching(False, shared), Caching(True, shared), Caching(True, shared)],
        "leaving": [Block(True), leaving, Block(True), Reading(True, [leaving]), Block(False)],
    }
    once = {name: nn.Sequential(*blocks) for name, blocks in found.items()}
    return once | {f"{name}, twice": Twice(*found[name]) for name in ("plain", "caching")}


def traced(name: str, monkeypatch: pytest.MonkeyPatch, few: int | None = None) -> tuple[Units, int]:
    """Units, and how often a linear layer ran; with no module of `few` steps run again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nets()[name], nn.Linear(6, 2)).eval()
    ran: list[Any] = []
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _m, x: ran.append(x))
    with monkeypatch.context() as patch:
        if few is not None:
            patch.setattr(modules, "FEW", few)
        return trace_units(net, torch.rand(2, 5)), len(ran)


@pytest.mark.parametrize("name", nets())
def test_the_same_is_found_with_fewer_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    units, few = traced(name, monkeypatch)
    all_units, many = traced(name, monkeypatch, few=10**6)
    assert said(units) == said(all_units)
    assert few < many


def test_all_that_attributes_lead_to_is_reached() -> None:
    other, state = nn.Linear(1, 1), [1.5]
    layer = nn.Module()
    layer.child = nn.ReLU()
    layer.held = {"a": [state]}
    layer.method = other.forward
    layer.register_forward_hook(lambda _m, _i, _o, kept=state: kept.clear())
    captured = nn.ReLU()
    layer.register_forward_hook(lambda *_: captured(torch.zeros(1)))
    found = reached(layer)
    assert {id(other), id(state), id(captured)} <= found
    assert id(layer.child) not in found


class Here:
    """Where the forward stands; of ten ids some are kept."""

    def __init__(self, keep: np.ndarray[Any, Any]) -> None:
        self.at, self.keep = 0, keep


class Counted(nn.Module):
    """As many steps as are recorded of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.wide = nn.Parameter(torch.rand(3)), 3
        self.ran = 0
        self.here: Here | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.here is not None
        self.here.at += MANY + 1
        object.__setattr__(self, "ran", self.ran + 1)
        return x.relu()


PART = np.arange(3, 6)
ALL = np.ones(10, dtype=bool)
OTHER = np.arange(10) != 9  # not among the ids of its steps
LESS = np.arange(10) != 4
SIX, SEVEN = torch.empty(2, 6, device="meta"), torch.empty(2, 7, device="meta")
SAME: tuple[Any, ...] = (SIX, {}, frozenset(), ALL)
AGAIN: dict[str, tuple[Any, ...]] = {
    "an argument": (SEVEN, {}, frozenset(), ALL),
    "a tensor": (SIX, {"a.weight": (2,)}, frozenset(), ALL),
    "a number": (SIX, {}, frozenset({("a", "wide", 2)}), ALL),
    "ids": (SIX, {}, frozenset(), LESS),
}
NOT_AGAIN: dict[str, tuple[Any, ...]] = {
    "nothing": SAME,
    "another tensor": (SIX, {"b.weight": (2,)}, frozenset(), ALL),
    "another number": (SIX, {}, frozenset({("b", "wide", 2)}), ALL),
    "other ids": (SIX, {}, frozenset(), OTHER),
}


def ran(first: tuple[Any, ...], then: tuple[Any, ...], refers: bool = False) -> int:
    """How often a module ran in two forwards."""
    net = nn.Module()
    net.a, net.b = a, b = Counted(), Counted()
    if refers:
        a.others = [b]
    shadow = along(PART, 0, 2, 1)
    step = Step("relu", [(2, 3)], [shadow], Entered([], [], ()), None, [], ("", "a"))
    known = modules.Modules({"": net, "a": a, "b": b}, [step] * (MANY + 1), {})
    for x, sizes, settings, keep in (first, then):
        a.here = Here(keep)
        installed = known.install(a.here, sizes, settings)
        out = a(x)
        for layer in installed:
            del layer.__dict__["forward"]
        assert (out.shape, a.here.at) == (x.shape, MANY + 1)
    return a.ran


@pytest.mark.parametrize("what", AGAIN)
def test_a_module_runs_again_for(what: str) -> None:
    assert ran(SAME, AGAIN[what]) == 2


@pytest.mark.parametrize("what", NOT_AGAIN)
def test_a_module_does_not_run_again_for(what: str) -> None:
    assert ran(SAME, NOT_AGAIN[what]) == 1


def test_a_module_that_refers_to_another_runs_again() -> None:
    assert ran(SAME, SAME, refers=True) == 2


CALLS = [0]


class Counting(Block):
    """Every third call has a number in the code."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        for _ in range(MANY):
            x = x.relu()
        inside = self.inside(x)
        return self.out(inside.view(-1, 12) if CALLS[0] % 3 == 0 else inside)


class ThirdIsWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Counting(False) for _ in range(4)), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] = 0
        out: Tensor = self.blocks(x)
        return out


def test_a_module_that_counts_in_a_global_variable_runs_every_time() -> None:
    CALLS[0] = 0
    units = trace_units(ThirdIsWritten(), torch.randn(3, 6))
    widths = {g.name: g.prunable for g in units.groups if g.size == 12}
    assert widths == {f"blocks.{i}.inside": i != 2 for i in range(4)}
