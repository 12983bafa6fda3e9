"""One network per way of joining, cutting, moving and sharing channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.pipeline.units.cases import CASES, Case, Net, case, conv, image, pooled


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


@case(6 + 5)
def upsampled_unet() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        a = F.relu(n.a(x))
        b = F.interpolate(F.relu(n.b(F.max_pool2d(a, 2))), scale_factor=2, mode="bilinear")
        a = F.dropout(a, training=n.training)
        return pooled(n.c(torch.cat([a, F.pad(b, (0, 0, 0, 0))], 1)))

    return Net(run, a=conv(3, 6), b=conv(6, 5), c=conv(11, 4))
