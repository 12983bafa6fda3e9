"""Networks in which values decide sizes or paths, lookups, norms of vectors: the laws, and units
counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import pipeline.units.trace as trace
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net
from tests.pipeline.units.laws import assert_laws, random_plan


@pytest.fixture(autouse=True, params=[0, trace.LITTLE], ids=["on demand", "own tensors"])
def _numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "LITTLE", request.param)


ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def check(build: Any, example: Any, prunable: int) -> None:
    units = trace_units(build(), example)
    found = "\n".join(map(str, units.groups))
    assert sum(g.size for g in units.prunable) == prunable, found
    assert_laws(build, example, units, random_plan(units, 0.5, torch.Generator().manual_seed(0)))


def seeded(forward: Any, **layers: Any) -> Any:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Net(forward, **{name: make() for name, make in layers.items()})

    return build


def test_rows_that_a_score_selects() -> None:
    """As boxes of a detector: another network selects others."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        best = hidden[(self.score(hidden)[:, 0] > 0).nonzero()[:, 0]]
        return self.last(self.second(best).relu())

    build = seeded(
        forward,
        first=lambda: nn.Linear(5, 8),
        score=lambda: nn.Linear(8, 1),
        second=lambda: nn.Linear(8, 7),
        last=lambda: nn.Linear(7, 3),
    )
    check(build, ROWS, 8 + 7)


class Experts(nn.Module):
    """One weight for all experts, as in transformers, or a list of layers."""

    def __init__(self, listed: bool, example_uses_all: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.router, self.last = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 3)
        self.up = nn.Parameter(torch.randn(2, 6, 8))
        self.down = nn.Parameter(torch.randn(2, 8, 6))
        self.listed = nn.ModuleList(nn.Linear(8, 8) for _ in range(2 * listed))
        with torch.no_grad():
            self.router.weight.copy_(torch.tensor([1.0, -1.0])[:, None] * torch.randn(8))
            self.router.bias[0] = 0 if example_uses_all else 100

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        chosen = self.router(hidden).argmax(-1)
        out = torch.zeros_like(hidden)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).nonzero()[:, 0]
            own = hidden[rows]
            if len(self.listed):
                made = self.listed[expert](own)
            else:
                made = F.linear(F.linear(own, self.up[expert]).relu(), self.down[expert])
            out.index_add_(0, rows, made)
        return self.last(out + hidden)


def test_experts_of_one_weight_lose_features_and_stream() -> None:
    check(lambda: Experts(False), ROWS, 8 + 6)


def test_experts_that_all_ran_lose_the_stream() -> None:
    check(lambda: Experts(True), ROWS, 8)


def test_an_expert_that_did_not_run_keeps_the_stream() -> None:
    units = trace_units(Experts(True, example_uses_all=False), ROWS)
    assert not units.prunable
    assert "listed.1.weight beside it did not run" in "".join(g.reason for g in units.groups)


class Positions(nn.Module):
    """Attention of four heads with a bias per head looked up in a table, as in Swin and BEiT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.randn(9, 4))
        places = torch.arange(5)[:, None] - torch.arange(5)[None] + 4
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(2, 5, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        weights = (q @ k.transpose(-1, -2) + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


WORDS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_heads_with_a_bias_from_a_table() -> None:
    check(Positions, WORDS, 4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_heads_scaled_by_one_vector(offset: float) -> None:
    class Scaled(Positions):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(2, 5, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
            weights = ((q * (offset + self.gain)) @ k.transpose(-1, -2)).softmax(-1)
            return self.out((weights @ v).transpose(1, 2).flatten(2))

    check(Scaled, WORDS, 4)


def _divided(self: Any, x: Tensor) -> Tensor:
    hidden = self.first(x)
    return self.last(hidden / torch.linalg.vector_norm(hidden, dim=-1, keepdim=True))


def test_a_normalised_vector_loses_zeros() -> None:
    build = seeded(
        _divided,
        first=lambda: nn.Linear(5, 8),
        last=lambda: nn.Linear(8, 3),
    )
    check(build, ROWS, 8)
