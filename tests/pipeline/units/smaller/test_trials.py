"""How many forwards a trace needs does not grow with the number of blocks that are alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.units.groups import Units
from pipeline.units.trace import trace_units
from pipeline.units.trace.smaller.attributes import WINDOW


class Said(nn.Module):
    """Its code reads a width from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = 12
        self.inside = nn.Linear(6, 12)
        self.out = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(WINDOW):  # so that no other block is looked at
            x = x.relu()
        x = self.out(self.inside(x).view(-1, self.number()))
        for _ in range(WINDOW):
            x = x.relu()
        return x

    def number(self) -> int:
        return self.wide


class SaidTwice(Said):
    """One attribute says two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.more, self.back = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.back(self.more(super().forward(x)).view(-1, self.number()))
        for _ in range(WINDOW):
            x = x.relu()
        return x


class Written(Said):
    """Its code says the width as a number; no attribute helps."""

    def number(self) -> int:
        return 12


def traced(kind: type[nn.Module], blocks: int) -> tuple[int, Units]:
    """Number of forwards, and what was found."""
    model = nn.Sequential(nn.Linear(5, 6), *(kind() for _ in range(blocks)), nn.Linear(6, 2))
    seen: list[Any] = []
    model[0].register_forward_pre_hook(lambda _m, x: seen.append(x))
    units = trace_units(model, torch.rand(2, 5))
    return len(seen), units


def test_one_attribute_is_found_for_all_blocks_at_once() -> None:
    (few, _), (many, units) = traced(Said, 2), traced(Said, 7)
    assert many == few
    assert [a.module for a in units.attributes] == [str(n) for n in range(1, 8)]
    assert {a.name for a in units.attributes} == {"wide"}


def test_an_attribute_follows_a_second_width_in_all_blocks_at_once() -> None:
    (few, _), (many, units) = traced(SaidTwice, 2), traced(SaidTwice, 7)
    assert many == few
    assert sorted(g.size for g in units.groups if g.prunable)[-7:] == [12] * 7


def test_what_helped_no_block_is_not_tried_again() -> None:
    (two, _), (four, units) = traced(Written, 2), traced(Written, 4)
    assert four - two == 2  # one forward per block: it shows where the code says a number
    assert not any(g.prunable for g in units.groups if g.name.endswith("inside"))
