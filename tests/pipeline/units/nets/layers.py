"""One network per rule of an operator with weights, and of elementwise operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.pipeline.units.cases import Net, case, conv, pooled


@case(6 + 8)
def chain() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(6, 8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@case(6 + 9)
def mlp_after_flatten() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 64, 9), nn.GELU(), nn.Linear(9, 4)
    )


@case(6 + 5)
def residual() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.bn(n.stem(x)))
        y = F.relu(y + n.bn2(n.b(F.relu(n.bn1(n.a(y))))))
        return n.fc(pooled(y))

    return Net(
        run,
        **{"stem": conv(3, 6), "bn": nn.BatchNorm2d(6), "a": conv(6, 5), "bn1": nn.BatchNorm2d(5)},
        **{"b": conv(5, 6), "bn2": nn.BatchNorm2d(6), "fc": nn.Linear(6, 4)},
    )


@case(8 + 6)
def depthwise() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, groups=8, stride=2), nn.BatchNorm2d(8)),
        *(nn.ReLU(), conv(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        nn.Linear(6 * 16, 4),
    )


@case(5 + 4)
def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 5), conv(5, 10, groups=5, bias=True), nn.BatchNorm2d(10), nn.ReLU()),
        *(conv(10, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )


@case(3 + 2 + 4)
def grouped() -> nn.Module:
    """12 channels in 4 groups are 3 units of 4, 8 in 4 are 2."""
    return nn.Sequential(
        *(conv(3, 12), nn.ReLU(), conv(12, 8, groups=4), nn.BatchNorm2d(8), nn.ReLU()),
        *(conv(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )


@case(8 + 3)
def se_gate() -> nn.Module:
    """The gate is not zero where its channel is; the product is."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.silu(n.bn(n.a(x)))
        s = torch.sigmoid(n.up(F.relu(n.down(y.mean((2, 3), keepdim=True)))))
        return n.fc(pooled(y * s))

    return Net(
        run,
        **{"a": conv(3, 8), "bn": nn.BatchNorm2d(8), "down": conv(8, 3, 1), "up": conv(3, 8, 1)},
        fc=nn.Linear(8, 4),
    )


@case(6 + 4)
def gate_from_linear() -> nn.Module:
    """Channel gate by Linear, reshaped; hardsigmoid."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        s = F.hardsigmoid(n.up(F.relu(n.down(pooled(y)))))[:, :, None, None]
        return n.fc((s * y).flatten(1))

    return Net(
        run,
        **{"a": conv(3, 6), "down": nn.Linear(6, 4), "up": nn.Linear(4, 6)},
        fc=nn.Linear(6 * 64, 4),
    )


@case(6)
def sigmoid_before_scale() -> nn.Module:
    """BatchNorm's own zero scale makes the channel zero again."""
    return nn.Sequential(
        conv(3, 6), nn.Sigmoid(), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 64, 4)
    )


@case(0)
def added_constant() -> nn.Module:
    return Net(
        lambda n, x: n.b(n.a(x) + 0.5).mean((2, 3)),
        a=conv(3, 6),
        b=conv(6, 4),
    )


@case(6 + 5 + 4)
def convtranspose() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.LeakyReLU(), nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)),
        *(nn.InstanceNorm2d(5, affine=True), nn.ReLU(), conv(5, 4), nn.Flatten()),
        nn.Linear(4 * 256, 4),
    )


@case(3 + 2 + 4 + 6)
def convtranspose_grouped() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.ReLU()),
        *(conv(4, 4), nn.ConvTranspose2d(4, 4, 3, groups=4, padding=1), nn.ReLU()),
        *(conv(4, 6), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
    )


@case(6 + 5)
def instance_norm() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ELU()),
        *(conv(6, 5), nn.InstanceNorm2d(5, affine=True), nn.Flatten(), nn.Linear(5 * 64, 4)),
    )


@case(6 + 5)
def prelu() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.PReLU(6), conv(6, 5), nn.PReLU(), nn.Flatten(), nn.Linear(5 * 64, 4))
    )


@case(4 + 3 + 5)
def group_norm() -> nn.Module:
    """8 channels in 4 groups of the normalisation are 4 units, 6 in 3 are 3."""
    return nn.Sequential(
        *(conv(3, 8), nn.GroupNorm(4, 8), nn.ReLU(), conv(8, 6), nn.GroupNorm(3, 6)),
        *(conv(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 4)),
    )


@case(0)
def group_norm_over_all() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.GroupNorm(1, 6), nn.Flatten(), nn.Linear(6 * 64, 4))


@case(5)
def layer_norm() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = n.norm(n.a(x).permute(0, 2, 3, 1))
        return n.c(F.gelu(n.b(y))).mean((1, 2))

    return Net(run, a=conv(3, 6), norm=nn.LayerNorm(6), b=nn.Linear(6, 5), c=nn.Linear(5, 4))


@case(6 + 4)
def layer_scale() -> nn.Module:
    """A parameter of the model itself scales and another shifts the channels."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x) * n.gamma + n.beta
        return n.c(F.relu(n.b(y))).mean((2, 3))

    return Net(
        run,
        **{"a": conv(3, 6), "gamma": nn.Parameter(torch.rand(6, 1, 1))},
        **{"beta": nn.Parameter(torch.rand(1, 6, 1, 1)), "b": conv(6, 4), "c": conv(4, 4)},
    )


@case(5)
def weight_norm() -> nn.Module:
    """A weight that is computed from parameters is left alone."""

    def run(n: Any, x: Tensor) -> Tensor:
        return n.c(F.relu(n.b(n.a(x)))).mean((2, 3))

    wrapped = nn.utils.parametrizations.weight_norm(conv(3, 6))
    return Net(run, a=wrapped, b=conv(6, 5), c=conv(5, 4))


@case(5, example=torch.tensor([[1, 2, 3], [4, 5, 6]]))
def embedding() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        return n.fc(n.table(x).mean(1))

    return Net(run, table=nn.Embedding(10, 5), fc=nn.Linear(5, 4))


@case(6 + 5, example=torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(5)))
def one_dimensional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(6, 5, 3, padding="same"), nn.AdaptiveAvgPool1d(2), nn.Flatten()),
        nn.Linear(10, 4),
    )


@case(6 + 5, example=torch.randn(2, 2, 6, 6, 6, generator=torch.Generator().manual_seed(5)))
def three_dimensional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.AvgPool3d(2)),
        *(nn.ConvTranspose3d(6, 5, 2), nn.Flatten(), nn.Linear(5 * 27, 4)),
    )
