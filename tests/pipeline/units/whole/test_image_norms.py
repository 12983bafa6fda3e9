"""RMS and global response norms over the channels of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.groups import Granularity, NormKind
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import norm_kind
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net, conv, image, pooled
from tests.pipeline.units.laws import assert_laws, random_plan


class OverImages(nn.Module):
    """Mean of squares over dimension 1 of (batch, channels, height, width)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-3
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        squares = x.square().mean(1, keepdim=True)
        y = x * torch.rsqrt(squares + self.eps) * self.weight.view(1, -1, 1, 1)
        return self.activation(y)


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda n, x: pooled(n.out(n.norm(n.stem(x)))),
        **{"stem": conv(3, 8), "norm": OverImages(activation), "out": nn.Conv2d(8, 4, 1)},
    )


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.Sigmoid()])
def test_channels_of_images_go_exactly(activation: nn.Module) -> None:
    units = trace_units(network(activation), image())
    assert [g.name for g in units.prunable] == ["stem"]
    assert [n.kind for n in units.norms] == [NormKind("weight", "eps", 0.0, dim=1)]
    none = {"stem": torch.zeros(8, dtype=torch.bool)}
    for plan in (
        random_plan(units, 0.5, torch.Generator().manual_seed(0)),
        PruningPlan(Granularity.STRUCTURED, none),
    ):
        assert_laws(lambda: network(activation), image(), units, plan)


@pytest.mark.parametrize("child", [nn.PReLU(8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)])
def test_a_child_with_weights_is_not_overlooked(child: nn.Module) -> None:
    assert norm_kind(OverImages(child)) is None


class Response(nn.Module):
    """Global response normalisation; `mode` says what differs from one that can lose channels."""

    def __init__(self, mode: str, dim: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.small, self.mode, self.dim = 1e-3, mode, dim

    def forward(self, x: Tensor) -> Tensor:
        image = (2, 3) if self.dim == 1 else (1, 2)
        shape = (1, -1, 1, 1) if self.dim == 1 else (1, 1, 1, -1)
        each = x.norm(dim=image, keepdim=True)
        small = 1e-3 if self.mode == "own eps" else self.small
        if self.mode == "sum":
            ratio = each / (each.sum(self.dim, keepdim=True) + small)
        else:
            ratio = each / (each.mean(self.dim, keepdim=True) + small)
        return x + self.shift.view(shape) + self.gain.view(shape) * x * ratio


def responding(mode: str, dim: int) -> nn.Module:
    torch.manual_seed(0)

    def run(n: Any, x: Tensor) -> Tensor:
        y = torch.nn.functional.gelu(n.stem(x))
        y = n.norm(y) if dim == 1 else n.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return pooled(n.out(y))

    return Net(run, stem=conv(3, 8), norm=Response(mode, dim), out=nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize("dim", [1, -1])
def test_a_global_response_norm_loses_channels_exactly(dim: int) -> None:
    units = trace_units(responding("plain", dim), image())
    assert [g.name for g in units.prunable] == ["stem"]
    assert [n.kind for n in units.norms] == [NormKind("gain", "small", 0.0, dim, power=1.0)]
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    shrunk = assert_laws(lambda: responding("plain", dim), image(), units, plan)
    assert shrunk.norm.small == pytest.approx(2e-3)


@pytest.mark.parametrize("mode", ["own eps", "sum"])
def test_other_responses_keep_their_channels(mode: str) -> None:
    """An eps that cannot grow; a sum, over which zero channels change nothing."""
    units = trace_units(responding(mode, 1), image())
    assert norm_kind(Response(mode, 1)) is None
    assert bool(units.prunable) == (mode == "sum")
    if mode == "sum":
        plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
        assert_laws(lambda: responding(mode, 1), image(), units, plan)
