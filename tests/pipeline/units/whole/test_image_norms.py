"""RMS norms over the channels of images, with and without an activation of their own."""

from __future__ import annotations

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
