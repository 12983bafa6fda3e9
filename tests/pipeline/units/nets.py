"""Small networks, one per rule of the tracer: build, example input, prunable units expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """`prunable` is counted by hand from the definition of a unit."""

    build: Callable[[], nn.Module]
    example: Any
    prunable: int


class Net(nn.Module):
    """Layers by name and a forward given as a function of (self, inputs...)."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self, *inputs)


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))


def conv(a: int, b: int, k: int = 3, **args: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **args)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


CASES: dict[str, Case] = {}


def case(prunable: int, *, example: Any = None) -> Callable[[Callable[[], nn.Module]], Any]:
    """Register the builder under its name; every build starts from the same seed."""

    def decorate(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def seeded() -> nn.Module:
            torch.manual_seed(0)
            return build()

        CASES[build.__name__] = Case(seeded, image() if example is None else example, prunable)
        return build

    return decorate


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


@case(6 + 5 + 4)
def concat() -> nn.Module:
    """Nested and reused concatenations, BatchNorm behind them."""

    def run(n: Any, x: Tensor) -> Tensor:
        a, b = F.relu(n.a(x)), n.b(x)
        ab = torch.cat([a, b], 1)
        c = n.c(F.relu(n.bn(ab)))
        return n.fc(pooled(F.relu(n.bn2(torch.cat([c, ab, a], 1)))))

    return Net(
        run,
        **{"a": conv(3, 6), "b": conv(3, 5), "bn": nn.BatchNorm2d(11), "c": conv(11, 4)},
        **{"bn2": nn.BatchNorm2d(21), "fc": nn.Linear(21, 4)},
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


@case(0)
def sigmoid_chain() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 4))


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


@case(6)
def shared_conv() -> nn.Module:
    """One convolution at two places: its input and its output are the same units."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.stem(x))
        return n.fc(pooled(n.c(F.relu(n.c(y)))))

    return Net(run, stem=conv(3, 6), c=conv(6, 6), fc=nn.Linear(6, 4))


@case(6 + 5)
def shared_on_two_branches() -> nn.Module:
    """The same convolution reads two different producers."""

    def run(n: Any, x: Tensor) -> Tensor:
        return n.fc(pooled(n.bn1(n.c(n.a(x))) + n.bn2(n.c(n.b(x)))))

    return Net(
        run,
        **{"a": conv(3, 6), "b": conv(3, 6), "c": conv(6, 5)},
        **{"bn1": nn.BatchNorm2d(5), "bn2": nn.BatchNorm2d(5), "fc": nn.Linear(5, 4)},
    )


@case(0)
def shared_with_input() -> nn.Module:
    """A convolution that also reads the image keeps its inputs, and so does what feeds it."""
    return Net(lambda n, x: n.c(n.c(x)).mean((2, 3)), c=conv(3, 3))


@case(6 + 5 + 4)
def two_norms_on_one_conv() -> nn.Module:
    """concat_case1 of OTO: two BatchNorms on one output, a three-way sum, a concatenation."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.bn0(n.stem(x)))
        a = n.a(y)
        s = F.relu(n.bn1(a)) + n.bn2(a) + n.b(y)
        return n.fc(pooled(n.c(n.bn3(torch.cat([s, y], 1)))))

    return Net(
        run,
        **{"stem": conv(3, 6), "bn0": nn.BatchNorm2d(6), "a": conv(6, 5), "b": conv(6, 5)},
        **{"bn1": nn.BatchNorm2d(5), "bn2": nn.BatchNorm2d(5), "bn3": nn.BatchNorm2d(11)},
        **{"c": conv(11, 4), "fc": nn.Linear(4, 4)},
    )


@case(0)
def added_to_input() -> nn.Module:
    return Net(lambda n, x: n.b(n.a(x) + x).mean((2, 3)), a=conv(3, 3), b=conv(3, 4))


@case(0 + 5)
def inner_output() -> nn.Module:
    def run(n: Any, x: Tensor) -> Any:
        y = F.relu(n.a(x))
        return {"logits": n.c(F.relu(n.b(y))).mean((2, 3)), "feature": (y,)}

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(5, 4))


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


@case(3 + 5)
def pixel_shuffle() -> nn.Module:
    """Four channels in, one out."""
    return nn.Sequential(
        *(conv(3, 12), nn.PixelShuffle(2), nn.ReLU(), conv(3, 5), nn.PixelUnshuffle(2)),
        *(conv(20, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


@case(0)
def channel_slice() -> nn.Module:
    """Channels taken by number cannot be renumbered."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.b(y[:, :4]).mean((2, 3)) + n.c(y[:, 2:]).mean((2, 3)) + y[:, 1].mean()

    return Net(run, a=conv(3, 6), b=conv(4, 4), c=conv(4, 4))


@case(4 + 3)
def chunk() -> nn.Module:
    """Halves stay halves: channel k of both is one unit."""

    def run(n: Any, x: Tensor) -> Tensor:
        a, b = n.a(x).chunk(2, 1)
        return n.c(torch.cat([F.relu(a), n.b(F.relu(b))], 1)).mean((2, 3))

    return Net(run, a=conv(3, 8), b=conv(4, 3), c=conv(7, 4))


@case(0)
def split_at_a_number() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        a, b = n.a(x).split([3, 5], 1)
        return n.b(a).mean((2, 3)) + n.c(b).mean((2, 3))

    return Net(run, a=conv(3, 8), b=conv(3, 4), c=conv(5, 4))


@case(3)
def split_by_a_number() -> nn.Module:
    """split(4) of 8 channels looks like chunk(2); the probe tells them apart."""

    def run(n: Any, x: Tensor) -> Tensor:
        a, b = n.a(x).split(4, 1)
        return n.c(n.b(F.relu(a)) + n.d(b)).mean((2, 3))

    return Net(run, a=conv(3, 8), b=conv(4, 3), d=conv(4, 3), c=conv(3, 4))


@case(4 + 5)
def channel_shuffle() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.a(x))
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return n.c(n.b(y)).mean((2, 3))

    return Net(run, a=conv(3, 8), b=conv(8, 5), c=conv(5, 4))


@case(4 + 4)
def channel_shuffle_module() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8), nn.ReLU(), nn.ChannelShuffle(2), conv(8, 4), nn.ReLU(), nn.Flatten()),
        nn.Linear(4 * 64, 4),
    )


@case(5)
def size_in_the_code() -> nn.Module:
    """view(-1, 6, ...) names the width; view(-1) in its place would not."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x).view(-1, 6, 64)
        return n.c(F.relu(n.b(y.transpose(1, 2)))).mean(1)

    return Net(run, a=conv(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 4))


@case(4)
def width_in_a_factor() -> nn.Module:
    """A factor computed from the width changes when the width does."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.c(n.b(y * y.shape[1] ** -0.5)).mean((2, 3))

    return Net(run, a=conv(3, 6), b=conv(6, 4), c=conv(4, 4))


@case(6)
def option_a() -> nn.Module:
    """Zero-padded shortcut: the padded channels of the next stage stay."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.a(x))
        z = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return n.fc(pooled(F.relu(n.b(y) + z)))

    return Net(run, a=conv(3, 6), b=conv(6, 10, stride=2), fc=nn.Linear(10, 4))


@case(6)
def zeros_like_padding() -> nn.Module:
    """A shortcut padded with as many zeros as channels follows them."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.a(x))
        return n.fc(pooled(n.b(y) + torch.cat([y, torch.zeros_like(y)], 1)))

    return Net(run, a=conv(3, 6), b=conv(6, 12), fc=nn.Linear(12, 4))


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


@case(0)
def mean_over_channels() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.b(y - y.mean(1, keepdim=True)).mean((2, 3))

    return Net(run, a=conv(3, 6), b=conv(6, 4))


@case(6)
def sum_over_channels() -> nn.Module:
    return Net(lambda n, x: F.relu(n.a(x)).sum(1).flatten(1), a=conv(3, 6))


@case(6)
def spatial_gate() -> nn.Module:
    """One channel that weighs all others stays; the others go."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.fc(pooled(y * torch.sigmoid(n.gate(y))))

    return Net(run, a=conv(3, 6), gate=conv(6, 1), fc=nn.Linear(6, 4))


@case(6 + 5)
def several_inputs() -> nn.Module:
    def run(n: Any, x: Tensor, y: Tensor) -> Any:
        a, b = F.relu(n.a(x)), F.relu(n.b(y))
        return n.c(torch.cat([a, b], 1)).mean((2, 3)), n.d(b).mean((2, 3))

    return Net(run, a=conv(3, 6), b=conv(2, 5), c=conv(11, 4), d=conv(5, 3))


CASES["several_inputs"] = Case(
    CASES["several_inputs"].build, (image(), image(2)), CASES["several_inputs"].prunable
)


@case(0)
def unknown_operator() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        return n.b(torch.sort(n.a(x), dim=2).values.cumsum(3)).mean((2, 3))

    return Net(run, a=conv(3, 6), b=conv(6, 4))


@case(0)
def written_through_a_view() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        y[:, :, 0].fill_(1.0)
        return n.b(y).mean((2, 3))

    return Net(run, a=conv(3, 6), b=conv(6, 4))


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


@case(6 + 5)
def upsampled_unet() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        a = F.relu(n.a(x))
        b = F.interpolate(F.relu(n.b(F.max_pool2d(a, 2))), scale_factor=2, mode="bilinear")
        a = F.dropout(a, training=n.training)
        return pooled(n.c(torch.cat([a, F.pad(b, (0, 0, 0, 0))], 1)))

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(11, 4))
