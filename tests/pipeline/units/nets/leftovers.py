"""Channels that are a constant once their zero-invariant part is zero, and who reads them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from tests.pipeline.units.cases import Net, case, conv, pooled


class Shared(nn.Module):
    """A scale and a shift that all channels share (StarReLU, learnable affine blocks)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


@case(6)
def sigmoid_chain() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 4))


@case(5)
def sigmoid_before_padding() -> nn.Module:
    """At the rim the second convolution reads zeros, not halves."""
    return nn.Sequential(
        *(conv(3, 6), nn.Sigmoid(), conv(6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(5, 4),
    )


@case(6 + 5)
def unpadded_without_bias() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.Sigmoid(), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    )


@case(9 + 7 + 5, example=torch.linspace(-2, 2, 12).view(2, 6))
def shared_scale_and_shift() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 9), Shared(), nn.Linear(9, 7, bias=False), Shared(), nn.Softplus()),
        *(nn.Linear(7, 5), nn.Sigmoid(), nn.Sigmoid(), nn.Linear(5, 4)),
    )


@case(4 + 5 + 6)
def constants_side_by_side() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        side = [torch.sigmoid(n.a(x)), F.relu(n.b(x)), torch.cos(n.c(x)) + 1]
        return pooled(n.d(torch.cat(side, 1)))

    return Net(run, a=conv(3, 4), b=conv(3, 5), c=conv(3, 6), d=conv(15, 4, 1))


@case(0)
def constants_over_one_another() -> nn.Module:
    """A channel is 1/2 above and 0 below: no constant."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return pooled(n.b(torch.cat([torch.sigmoid(y), F.relu(y)], 2)))

    return Net(run, a=conv(3, 4), b=conv(4, 4, 1))


@case(3 + 4)
def grouped_reader() -> nn.Module:
    """Channel k of both groups is one unit, and a half in both."""
    return nn.Sequential(
        *(conv(3, 6), nn.Sigmoid(), nn.Conv2d(6, 8, 1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@case(4)
def grouped_reader_of_two_constants() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        both = torch.cat([torch.sigmoid(n.a(x)), torch.cos(n.b(x))], 1)
        return n.fc(pooled(F.relu(n.c(both))))

    layers = {"a": conv(3, 3), "b": conv(3, 3), "c": nn.Conv2d(6, 8, 1, groups=2)}
    return Net(run, **layers, fc=nn.Linear(8, 4))


@case(0)
def one_reader_twice() -> nn.Module:
    """Its bias would take the half for the other call too."""
    return Net(
        lambda n, x: pooled(n.c(torch.sigmoid(n.a(x)))) + pooled(n.c(F.relu(n.b(x)))),
        **{"a": conv(3, 4), "b": conv(3, 4), "c": conv(4, 4, 1)},
    )


@case(0)
def reader_of_a_borrowed_weight() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(pooled(n.a(x)))
        return n.b(y) + F.linear(F.relu(y), n.b.weight)

    return Net(run, a=conv(3, 5), b=nn.Linear(5, 4))


@case(6)
def sum_of_constants() -> nn.Module:
    """1/2 + cos(0), pooled; a cast on the way."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(n.a(x)) + torch.cos(n.b(x))
        return n.fc(pooled(F.max_pool2d(y.double(), 3, 2, 1)).to(x.dtype))

    return Net(run, a=conv(3, 6), b=conv(3, 6), fc=nn.Linear(6, 4))


@case(0)
def rounded_constant() -> nn.Module:
    """Integers are not followed."""
    return Net(
        lambda n, x: n.fc(pooled((torch.sigmoid(n.a(x)) * 3).int().to(x.dtype))),
        **{"a": conv(3, 6), "fc": nn.Linear(6, 4)},
    )


@case(0)
def no_finite_constant() -> nn.Module:
    return Net(
        lambda n, x: n.fc(torch.exp(-torch.log(pooled(F.relu(n.a(x))) + 0.0).abs())),
        **{"a": conv(3, 6), "fc": nn.Linear(6, 4)},
    )


@case(5, example=torch.linspace(-1, 1, 12).view(2, 6))
def plain_parameters() -> nn.Module:
    """A layer written with a product and an addition."""

    def run(n: Any, x: Tensor) -> Tensor:
        return torch.addmm(n.shift, torch.sigmoid(n.a(x)), n.weight)

    shift, weight = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(5, 4))
    return Net(run, a=nn.Linear(6, 5), shift=shift, weight=weight)


@case(5, example=torch.linspace(-1, 1, 36).view(2, 3, 6))
def tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4))


@case(0, example=torch.linspace(-1, 1, 12).view(2, 6))
def reader_that_never_runs() -> nn.Module:
    """Another bias than the one of the layer that owns the weight would have to take it."""
    return Net(
        lambda n, x: F.linear(torch.sigmoid(n.a(x)), n.b.weight),
        **{"a": nn.Linear(6, 5), "b": nn.Linear(5, 4)},
    )


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1


@case(0, example=torch.linspace(-1, 1, 12).view(2, 6))
def reader_with_a_computed_bias() -> nn.Module:
    reader = nn.Linear(5, 4)
    register_parametrization(reader, "bias", Same())
    return nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), reader)


@case(0, example=torch.linspace(-1, 1, 12).view(2, 6))
def product_that_counts_thrice() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        return torch.addmm(n.shift, torch.sigmoid(n.a(x)), n.weight, alpha=3)

    shift, weight = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(5, 4))
    return Net(run, a=nn.Linear(6, 5), shift=shift, weight=weight)


@case(0, example=torch.linspace(-1, 1, 12).view(2, 6))
def one_shift_for_every_example() -> nn.Module:
    """It has no place for four numbers."""

    def run(n: Any, x: Tensor) -> Tensor:
        return torch.addmm(n.shift, torch.sigmoid(n.a(x)), n.weight)

    shift, weight = nn.Parameter(torch.rand(2, 1)), nn.Parameter(torch.rand(5, 4))
    return Net(run, a=nn.Linear(6, 5), shift=shift, weight=weight)


@case(0, example=torch.linspace(-1, 1, 12).view(2, 6))
def number_of_the_example() -> nn.Module:
    """Half of another number for the next example."""
    return Net(
        lambda n, x: n.b(torch.sigmoid(n.a(x)) * x.abs().max().item()),
        **{"a": nn.Linear(6, 5), "b": nn.Linear(5, 4)},
    )


@case(0)
def constants_behind_thresholds() -> nn.Module:
    """Samples below a threshold, and none that are equal, say nothing of the constant."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        shrunk = F.hardshrink(9 * torch.cos(y), 5.0)
        whole = torch.div(900 * torch.cos(y), 100, rounding_mode="trunc")
        same = (torch.sigmoid(y) == 0.5).to(x.dtype)
        return pooled(n.b(shrunk + whole + same))

    return Net(run, a=conv(3, 4), b=conv(4, 4))


@case(4 + 4 + 4)
def thresholds_one_by_one() -> nn.Module:
    """Unpadded readers take the constants of the first two; an equality has none to take."""

    def run(n: Any, x: Tensor) -> Tensor:
        one = n.d(F.hardshrink(9 * torch.cos(n.a(x)), 5.0))
        two = n.e(torch.div(900 * torch.cos(n.b(x)), 100, rounding_mode="trunc"))
        three = n.f((n.c(x) == 0).to(x.dtype))
        return n.fc(pooled(F.relu(one + two + three)))

    layers = {name: conv(3, 4) for name in "abc"}
    readers = {name: nn.Conv2d(4, 4, 1) for name in "def"}
    return Net(run, **layers, **readers, fc=nn.Linear(4, 3))
