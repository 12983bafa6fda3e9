"""Blocks of rarely tested topologies, drawn by hypothesis and put one behind the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pipeline.units.cases import Net, conv

Draw = Callable[[st.SearchStrategy[Any]], Any]
SIZE = 4


@dataclass(frozen=True)
class Plan:
    """What was drawn: the name of each block with its numbers. Prints as what to type again."""

    width: int
    blocks: tuple[tuple[str, tuple[Any, ...]], ...]

    def build(self) -> nn.Module:
        """The same weights every time."""
        torch.manual_seed(0)
        layers: list[nn.Module] = [conv(3, self.width, 1)]
        x = torch.zeros(1, self.width, SIZE, SIZE)
        for name, numbers in self.blocks:
            block = BLOCKS[name][1](x.shape[1], *numbers)
            x = block(x)
            layers.append(block)
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(x.shape[1], 3)
        )


def norm(kind: str, width: int) -> nn.Module:
    """One of the norms, or none."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(width),
        "group": lambda: nn.GroupNorm(width // 2 if width % 2 == 0 else width, width),
        "instance": lambda: nn.InstanceNorm2d(width, affine=True),
        "still": lambda: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        "bare": lambda: nn.BatchNorm2d(width, affine=False),
        "prelu": lambda: nn.PReLU(width),
        "none": nn.Identity,
    }
    return kinds[kind]()


def grouped_concat(c: int, g: int, h: int, k: int) -> nn.Module:
    """Grouped convolutions of different numbers of groups, side by side."""
    return Net(
        lambda n, x: torch.cat([n.a(x), n.b(x)], 1),
        a=conv(c, g * k, groups=g),
        b=conv(c, h * 2, 1, groups=h),
    )


def nested(c: int, outer: str, inner: str, last: str) -> nn.Module:
    """A residual block in a residual block, a norm of its own in each place."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.first(n.a(x))
        y = y + n.second(n.b(F.relu(y)))
        return F.relu(x + n.third(n.c(y)))

    return Net(
        run, a=conv(c, c + 2), first=norm(outer, c + 2), b=conv(c + 2, c + 2, 1),
        second=norm(inner, c + 2), c=conv(c + 2, c, 1), third=norm(last, c),
    )  # fmt: skip


def two_scales(c: int, kind: str, mode: str) -> nn.Module:
    """One convolution and one norm for two resolutions."""

    def run(n: Net, x: Tensor) -> Tensor:
        low = n.norm(n.shared(F.max_pool2d(x, 2)))
        return n.norm(n.shared(x)) + F.interpolate(low, size=x.shape[-2:], mode=mode)

    return Net(run, shared=conv(c, c), norm=norm(kind, c))


def transposed(c: int, g: int, k: int, stride: int) -> nn.Module:
    """A transposed convolution with groups; the size comes back by pooling."""
    up = nn.ConvTranspose2d(c, g * k, stride + 1, stride=stride, groups=g)
    return Net(lambda n, x: F.adaptive_avg_pool2d(F.relu(n.up(x)), SIZE), up=up)


def shuffle_split(c: int, g: int, first: int, joined: bool) -> nn.Module:
    """A channel shuffle, then two parts of unequal size, each with a convolution."""
    first = min(first, c - 1)

    def run(n: Net, x: Tensor) -> Tensor:
        a, b = F.channel_shuffle(x, g).split([first, c - first], 1)
        return torch.cat([n.a(a), n.b(b)], 1) if joined else n.a(a) + n.b(b)

    return Net(run, a=conv(first, 4), b=conv(c - first, 4, 1))


def resized(c: int, mode: str, rate: float) -> nn.Module:
    """Dropout, down and up again."""

    def run(n: Net, x: Tensor) -> Tensor:
        small = F.interpolate(n.drop(n.a(x)), scale_factor=0.5, mode=mode)
        return x * torch.sigmoid(F.interpolate(n.b(small), size=x.shape[-2:], mode="bilinear"))

    return Net(run, a=conv(c, 6, 1), b=conv(6, c, 1), drop=nn.Dropout2d(rate))


def pixel_residual(c: int, kind: str) -> nn.Module:
    """A 1x1 convolution to four times the channels, shuffled into pixels, added to the input."""

    def run(n: Net, x: Tensor) -> Tensor:
        fine = n.norm(F.pixel_shuffle(n.wide(x), 2))
        return x + F.avg_pool2d(F.relu(fine), 2)

    return Net(run, wide=conv(c, 4 * c, 1), norm=norm(kind, c))


def unshuffled(c: int, k: int) -> nn.Module:
    """Pixels into channels, a convolution over them, and back."""

    def run(n: Net, x: Tensor) -> Tensor:
        return F.pixel_shuffle(n.a(F.pixel_unshuffle(x, 2)), 2)

    return Net(run, a=conv(4 * c, 4 * k, 1))


def squeezed(c: int, k: int) -> nn.Module:
    """Gates per channel from pooled channels."""

    def run(n: Net, x: Tensor) -> Tensor:
        return x * torch.sigmoid(n.up(F.relu(n.down(x.mean((2, 3))))))[:, :, None, None]

    return Net(run, down=nn.Linear(c, k), up=nn.Linear(k, c))


def channels_last(c: int, k: int) -> nn.Module:
    """A depthwise convolution, then linear layers over the last dimension, a scale, a residual."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = n.up(F.gelu(n.down(n.depth(x).permute(0, 2, 3, 1))))
        return x + (n.scale * y).permute(0, 3, 1, 2)

    return Net(
        run, depth=conv(c, c, groups=c), down=nn.Linear(c, k), up=nn.Linear(k, c),
        scale=nn.Parameter(torch.full((c,), 0.5)),
    )  # fmt: skip


def multiplied(c: int, m: int) -> nn.Module:
    """A depthwise convolution that makes several channels of each."""
    return Net(lambda n, x: n.b(F.relu(n.a(x))), a=conv(c, m * c, groups=c), b=conv(m * c, 6, 1))


def tied(c: int) -> nn.Module:
    """Two convolutions of one weight, each with a bias."""
    net = Net(lambda n, x: n.a(F.relu(n.b(x))) + x, a=conv(c, c), b=conv(c, c))
    net.b.weight = net.a.weight
    return net


def recurrent(c: int, kind: str) -> nn.Module:
    """A convolution that reads what it made, beside a fresh norm each time."""
    return Net(
        lambda n, x: n.two(n.a(F.relu(n.one(n.a(x))))), a=conv(c, c), one=norm(kind, c),
        two=nn.BatchNorm2d(c),
    )  # fmt: skip


def dense_block(c: int, k: int) -> nn.Module:
    """Every layer reads all before it."""

    def run(n: Net, x: Tensor) -> Tensor:
        y = torch.cat([x, n.a(n.one(x))], 1)
        return torch.cat([y, n.b(F.relu(n.two(y)))], 1)

    return Net(
        run, a=conv(c, k), one=nn.BatchNorm2d(c), b=conv(c + k, 2, 1), two=nn.BatchNorm2d(c + k)
    )


def pyramid(c: int, k: int) -> nn.Module:
    """Pools of several sizes, each with a convolution, resized and joined."""

    def run(n: Net, x: Tensor) -> Tensor:
        parts = [F.adaptive_avg_pool2d(x, s) for s in (1, 2)]
        found = [
            F.interpolate(m(p), size=x.shape[-2:]) for m, p in zip((n.a, n.b), parts, strict=True)
        ]
        return torch.cat([x, *found], 1)

    return Net(run, a=conv(c, k, 1), b=conv(c, 2, 1))


def linear_units(c: int, k: int) -> nn.Module:
    """Half of the channels gate the other half."""
    return Net(lambda n, x: F.glu(n.a(x), 1), a=conv(c, 2 * k))


def selected(c: int, k: int) -> nn.Module:
    """Two kernels, weighed against each other channel by channel."""

    def run(n: Net, x: Tensor) -> Tensor:
        both = torch.stack([n.a(x), n.b(x)], 1)
        z = F.relu(n.down(both.sum(1).mean((2, 3))))
        weights = torch.stack([n.up(z), n.other(z)], 1).softmax(1)
        return (both * weights[..., None, None]).sum(1)

    return Net(
        run, a=conv(c, 4), b=conv(c, 4, 1), down=nn.Linear(4, k), up=nn.Linear(k, 4),
        other=nn.Linear(k, 4),
    )  # fmt: skip


def there_and_back(c: int, k: int) -> nn.Module:
    """One matrix and its transpose, over channels in the last dimension."""

    def run(n: Net, x: Tensor) -> Tensor:
        return (F.relu(x.permute(0, 2, 3, 1) @ n.w) @ n.w.t()).permute(0, 3, 1, 2)

    return Net(run, w=nn.Parameter(torch.randn(c, k)))


def half_residual(c: int, k: int) -> nn.Module:
    """One half of the channels moves the other, as in a reversible network."""

    def run(n: Net, x: Tensor) -> Tensor:
        still, moved = x.chunk(2, 1)
        return torch.cat([still, moved + n.b(F.relu(n.a(still)))], 1)

    half = (c + 1) // 2
    return Net(run, a=conv(half, k), b=conv(k, c - half, 1))


NORMS = st.sampled_from(["batch", "group", "instance", "still", "bare", "prelu", "none"])
FEW = st.integers(2, 4)
MODES = st.sampled_from(["nearest", "bilinear", "bicubic", "area"])


def divisors(c: int) -> st.SearchStrategy[int]:
    """Numbers of groups that a width of `c` allows."""
    return st.sampled_from([g for g in range(1, c + 1) if c % g == 0])


# name -> (what it needs to know, given the width; the block)
BLOCKS: dict[str, tuple[Callable[[int], st.SearchStrategy[Any]], Callable[..., nn.Module]]] = {
    "grouped_concat": (
        lambda c: st.tuples(divisors(c), divisors(c), st.integers(1, 3)),
        grouped_concat,
    ),
    "nested": (lambda _: st.tuples(NORMS, NORMS, NORMS), nested),
    "two_scales": (lambda _: st.tuples(NORMS, MODES), two_scales),
    "transposed": (lambda c: st.tuples(divisors(c), FEW, st.integers(1, 2)), transposed),
    "shuffle_split": (
        lambda c: st.tuples(divisors(c), st.integers(1, 5), st.booleans()),
        shuffle_split,
    ),
    "resized": (lambda _: st.tuples(MODES, st.sampled_from([0.0, 0.5])), resized),
    "pixel_residual": (lambda _: st.tuples(NORMS), pixel_residual),
    "unshuffled": (lambda _: st.tuples(FEW), unshuffled),
    "squeezed": (lambda _: st.tuples(FEW), squeezed),
    "channels_last": (lambda _: st.tuples(FEW), channels_last),
    "multiplied": (lambda _: st.tuples(FEW), multiplied),
    "tied": (lambda _: st.just(()), tied),
    "recurrent": (lambda _: st.tuples(NORMS), recurrent),
    "dense_block": (lambda _: st.tuples(FEW), dense_block),
    "pyramid": (lambda _: st.tuples(FEW), pyramid),
    "linear_units": (lambda _: st.tuples(FEW), linear_units),
    "selected": (lambda _: st.tuples(FEW), selected),
    "there_and_back": (lambda _: st.tuples(FEW), there_and_back),
    "half_residual": (lambda _: st.tuples(FEW), half_residual),
}


@st.composite
def plans(draw: Draw) -> Plan:
    """Up to four blocks."""
    width = c = draw(st.sampled_from([4, 6, 8]))
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(BLOCKS)))
        numbers = draw(BLOCKS[name][0](c))
        blocks.append((name, numbers))
        c = BLOCKS[name][1](c, *numbers)(torch.zeros(1, c, SIZE, SIZE)).shape[1]
        if c > 24:
            break
    return Plan(width, tuple(blocks))
