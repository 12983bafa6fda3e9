"""The sanity-check topologies of Only-Train-Once, small; every count is worked out by hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.pipeline.units.cases import Net, case, conv, image, pooled


def inorm(width: int) -> nn.Module:
    return nn.InstanceNorm2d(width, affine=True)


def up(a: int, b: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(a, b, 2, stride=2)


@case(6 + 5 + 4 + 7)
def oto_concat_1() -> nn.Module:
    """Two BatchNorms on one convolution and a second one, summed; concatenation; two layers."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.bn(n.stem(x)))
        a = n.a(y)
        left = F.relu(n.bn1(a)) + n.bn2(a) + n.b(y)
        z = n.c(n.bn3(torch.cat([left, y], 1)))
        return n.out(n.fc(pooled(z)))

    return Net(
        run,
        **{"stem": conv(3, 6), "bn": nn.BatchNorm2d(6), "a": conv(6, 5), "b": conv(6, 5)},
        **{"bn1": nn.BatchNorm2d(5), "bn2": nn.BatchNorm2d(5), "bn3": nn.BatchNorm2d(11)},
        **{"c": conv(11, 4), "fc": nn.Linear(4, 7), "out": nn.Linear(7, 3)},
    )


@case(6 + 5 + 4 + 3 + 7)
def oto_concat_2() -> nn.Module:
    """Concatenations of concatenations, each read twice."""

    def run(n: Any, x: Tensor) -> Tensor:
        a = F.relu(n.a(x))
        ab = torch.cat([a, n.b(a)], 1)
        c = n.c(ab)
        abc = torch.cat([ab, c], 1)
        d = n.d(F.relu(abc))
        y = n.bn(torch.cat([abc, torch.cat([d, ab], 1)], 1))
        return n.out(n.fc(pooled(y)))

    return Net(
        run,
        **{"a": conv(3, 6), "b": conv(6, 5), "c": conv(11, 4), "d": conv(15, 3)},
        **{"bn": nn.BatchNorm2d(29), "fc": nn.Linear(29, 7), "out": nn.Linear(7, 3)},
    )


@case(6 + 5 + 4)
def oto_transposed_1() -> nn.Module:
    """InstanceNorm branches of one convolution; transposed convolution; sums of norms."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.stem(x)
        z = n.a(F.relu(n.in1(y))) + n.b(F.relu(n.in2(y)))
        t = n.up(F.leaky_relu(z))
        return pooled(n.out(n.in3(t) + n.in4(n.up2(z))))

    return Net(
        run,
        **{"stem": conv(3, 6), "in1": inorm(6), "in2": inorm(6), "a": conv(6, 5), "b": conv(6, 5)},
        **{"up": up(5, 4), "up2": up(5, 4), "in3": inorm(4), "in4": inorm(4), "out": conv(4, 3)},
    )


@case(6 + 5 + 4 + 3)
def oto_transposed_2() -> nn.Module:
    """Convolution and transposed convolution, concatenated under a norm, then summed."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.leaky_relu(n.stem(x))
        z = n.norm(torch.cat([n.big(F.interpolate(y, scale_factor=2.0)), n.up(y)], 1))
        s = F.leaky_relu(n.down(z)) + F.leaky_relu(n.up2(F.max_pool2d(z, 2)))
        return pooled(n.out(s))

    return Net(
        run,
        **{"stem": conv(3, 6), "big": conv(6, 5), "up": up(6, 4), "norm": inorm(9)},
        **{"down": conv(9, 3), "up2": up(9, 3), "out": conv(3, 3)},
    )


def plain(activations: list[nn.Module]) -> nn.Module:
    widths = [3, 6, 5, 4, 7]
    layers: list[nn.Module] = []
    for a, b, activation in zip(widths[:-1], widths[1:], activations, strict=True):
        layers += [conv(a, b), inorm(b), activation]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3))


@case(6 + 5 + 4 + 7)
def oto_instance_norm_3() -> nn.Module:
    return plain([nn.LeakyReLU(0.1) for _ in range(4)])


@case(6 + 5 + 4 + 7)
def oto_instance_norm_4() -> nn.Module:
    return plain([nn.PReLU(n) for n in (6, 5, 4, 7)])


@case(6 + 5 + 4)
def oto_shared_1() -> nn.Module:
    """One convolution called twice, its outputs added over norms of their own, concatenated."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.stem(x))
        a, b = n.a(y), n.a(F.relu(n.bn0(y)))
        s = n.bn1(a) + n.bn2(b)
        return pooled(n.out(n.c(torch.cat([s, y], 1))))

    return Net(
        run,
        **{"stem": conv(3, 6), "bn0": nn.BatchNorm2d(6), "a": conv(6, 5)},
        **{"bn1": nn.BatchNorm2d(5), "bn2": nn.BatchNorm2d(5), "c": conv(11, 4)},
        out=conv(4, 3),
    )


@case(3 + 4 + 5)
def oto_shared_2() -> nn.Module:
    """Two shared convolutions in a loop, over a concatenation with what they made the last time.

    The first stem is what the loop carries: it and the second convolution's outputs are the same
    inputs of the first one. The original takes them for separate units and crashes.
    """

    def run(n: Any, x: Tensor) -> Tensor:
        skip = F.relu(n.skip(x))
        y = F.relu(n.stem(x))
        for _ in range(4):
            y = F.relu(n.d(F.relu(n.c(torch.cat([skip, y], 1)))))
        return pooled(n.out(y))

    return Net(
        run,
        **{"skip": conv(3, 3), "stem": conv(3, 4), "c": conv(7, 5), "d": conv(5, 4)},
        out=conv(4, 3),
    )


class PreActBlock(nn.Module):
    """Norm before convolution; the shortcut takes a convolution where the width changes."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.bn1, self.c1 = nn.BatchNorm2d(a), conv(a, b)
        self.bn2, self.c2 = nn.BatchNorm2d(b), conv(b, b)
        self.shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(F.relu(self.bn1(x)))
        return self.shortcut(x) + self.c2(F.relu(self.bn2(y)))


@case(4 + 2 * 5 + 2 * 6 + 4 + 2 * 3, example=(image(), image(2)))
def oto_pre_activation_unet() -> nn.Module:
    """Residual blocks, two inputs, skip concatenation. A block has inner and outer channels."""

    def run(n: Any, x: Tensor, y: Tensor) -> Tensor:
        a = n.down1(n.stem(torch.cat([x, y], 1)))
        b = n.down2(F.avg_pool2d(a, 2))
        return n.out(n.last(torch.cat([n.up(b), a], 1)))

    return Net(
        run,
        **{"stem": conv(5, 4), "down1": PreActBlock(4, 5), "down2": PreActBlock(5, 6)},
        **{"up": up(6, 4), "last": PreActBlock(9, 3), "out": conv(3, 2)},
    )


@case(4 + 6 + 5 + 5 + 4, example=(image(), image(2), image(1)))
def oto_separable_unet() -> nn.Module:
    """Depthwise-separable encoder of several inputs, sliced image, transposed decoder."""

    def run(n: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        a = F.relu(n.a(torch.cat([x[:, :2], y, z], 1)))
        b = F.relu6(n.point1(n.deep1(a)))
        c = F.relu6(n.point2(n.deep2(b)))
        d = F.relu(torch.cat([n.up1(c), b[:, :, 1:-1, 1:-1].repeat(1, 1, 1, 1)], 1))
        e = n.up2(d)
        return n.out(e), n.aside(F.relu(d))

    def deep(width: int, stride: int) -> nn.Module:
        return conv(width, width, groups=width, stride=stride, bias=False)

    return Net(
        run,
        **{"a": conv(5, 4), "deep1": deep(4, 1), "point1": conv(4, 6, 1), "deep2": deep(6, 2)},
        **{"point2": conv(6, 5, 1), "up1": nn.ConvTranspose2d(5, 5, 3), "up2": up(11, 4)},
        **{"out": conv(4, 2), "aside": conv(11, 2)},
    )


@case(4 + 3)
def oto_group_norm_1() -> nn.Module:
    """Chain: a unit is a group of the normalisation."""
    return nn.Sequential(
        *(conv(3, 8), nn.GroupNorm(4, 8), nn.ReLU(), conv(8, 6), nn.GroupNorm(3, 6), nn.ReLU()),
        conv(6, 3),
    )


def group_norm_on_concat(groups: int) -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        return n.out(n.norm(torch.cat([n.a(x), n.b(x)], 1)))

    return Net(run, a=conv(3, 4), b=conv(3, 8), norm=nn.GroupNorm(groups, 12), out=conv(12, 3))


@case(2 + 4)
def oto_group_norm_2() -> nn.Module:
    """Behind a concatenation whose parts are whole groups: the original leaves them, we do not."""
    return group_norm_on_concat(6)


@case(4)
def oto_group_norm_3() -> nn.Module:
    """Groups of 3 over parts of 4 and 8: the second group joins both parts."""
    return group_norm_on_concat(4)


@case(4 + 3)
def oto_group_norm_4() -> nn.Module:
    """A residual stream under two normalisations."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.norm(n.stem(x)))
        z = n.norm2(n.b(F.relu(n.norm1(n.a(y)))))
        return n.out(F.relu(y + z))

    return Net(
        run,
        **{"stem": conv(3, 8), "norm": nn.GroupNorm(4, 8), "a": conv(8, 6), "b": conv(6, 8)},
        **{"norm1": nn.GroupNorm(3, 6), "norm2": nn.GroupNorm(4, 8), "out": conv(8, 3)},
    )


@case(4 + 4 + 4 + 2 * 4 + 4)
def oto_cascade() -> nn.Module:
    """Super-resolution: cascades of residual blocks, 1x1 convolutions, pixel shuffle."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = n.entry(x)
        cascade = y
        for block, mix in ((n.b1, n.m1), (n.b2, n.m2)):
            cascade = torch.cat([cascade, block(y)], 1)
            y = F.relu(mix(cascade))
        return n.out(F.relu(F.pixel_shuffle(n.grow(y), 2)))

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = conv(width, width), conv(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    return Net(
        run,
        **{"entry": conv(3, 4), "b1": Block(4), "m1": conv(8, 4, 1), "b2": Block(4)},
        **{"m2": conv(12, 4, 1), "grow": conv(4, 16), "out": conv(4, 3)},
    )


@case(4 + 2)
def oto_shuffle() -> nn.Module:
    """Halves, a depthwise branch, a channel shuffle, twice: position k of both halves is a unit."""

    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.stem(x))
        for first, deep, last in ((n.a1, n.d1, n.l1), (n.a2, n.d2, n.l2)):
            left, right = y.chunk(2, 1)
            right = F.relu(last(deep(F.relu(first(right)))))
            y = F.channel_shuffle(torch.cat([left, right], 1), 2)
        return pooled(n.out(y))

    def deep(width: int) -> nn.Module:
        return conv(width, width, groups=width)

    return Net(
        run,
        **{"stem": conv(3, 8), "a1": conv(4, 2, 1), "d1": deep(2), "l1": conv(2, 4, 1)},
        **{"a2": conv(4, 2, 1), "d2": deep(2), "l2": conv(2, 4, 1), "out": conv(8, 3)},
    )
