"""Channels cut into parts: by numbers that a module holds, and by numbers written in the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net, conv, image, pooled
from tests.pipeline.units.laws import assert_laws, random_plan

WORDS = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
HEADS, WIDTH = 4, 6
INNER = HEADS * WIDTH


class Sized(Net):
    """A `Net` with numbers of its own."""

    def __init__(self, forward: Callable[..., Any], numbers: dict[str, Any], **layers: Any) -> None:
        super().__init__(forward, **layers)
        for name, value in numbers.items():
            setattr(self, name, value)


def mixed_kernels() -> nn.Module:
    """InceptionNeXt, MixNet: every part has a depthwise convolution of its own."""

    def run(n: Any, x: Tensor) -> Tensor:
        a, b, c = torch.split(n.stem(x), n.sizes, dim=1)
        return n.head(pooled(torch.cat((a, n.three(b), n.five(c)), dim=1)))

    return Sized(
        run,
        {"sizes": [6, 5, 5]},
        stem=conv(3, 16),
        three=conv(5, 5, groups=5),
        five=conv(5, 5, 5, groups=5),
        head=nn.Linear(16, 3),
    )


def gated() -> nn.Module:
    """MambaOut: a gate as wide as what passes and what is convolved together."""

    def run(n: Any, x: Tensor) -> Tensor:
        gate, plain, mixed = torch.split(n.fc1(x), n.sizes, dim=-1)
        mixed = n.conv(mixed.transpose(1, 2)).transpose(1, 2)
        return n.fc2(gelu(gate) * torch.cat((plain, mixed), dim=-1))

    return Sized(
        run,
        {"sizes": (10, 7, 3)},
        fc1=nn.Linear(12, 20),
        conv=nn.Conv1d(3, 3, 3, padding=1, groups=3),
        fc2=nn.Linear(10, 12),
    )


def one_number_for_two_parts() -> nn.Module:
    """Keys and queries share an attribute, so they shrink together."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = n.qkv(x).split([n.key, n.key, n.value], dim=-1)
        return n.out((q @ k.mT).softmax(-1) @ v)

    numbers = {"key": 4, "value": 8}
    return Sized(run, numbers, qkv=nn.Linear(12, 16), out=nn.Linear(8, 12))


def sliced() -> nn.Module:
    """Phi-3, dual paths: slices up to and from a number of the module."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = n.fc(x)
        return n.one(x[..., : n.border].relu()) + n.two(x[..., n.border :].relu())

    layers = {"fc": nn.Linear(12, 9), "one": nn.Linear(5, 12), "two": nn.Linear(4, 12)}
    return Sized(run, {"border": 5}, **layers)


def heads_apart(q: Tensor) -> Tensor:
    return q.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = (q @ k.mT * 0.4).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def bias_in_three() -> nn.Module:
    """BEiT, Swin v2: biases of queries and values are parameters, that of keys is a buffer."""

    def run(n: Any, x: Tensor) -> Tensor:
        bias = torch.cat((n.q_bias, n.k_bias, n.v_bias))
        qkv = linear(x, n.qkv.weight, bias).unflatten(-1, (3, -1, WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return n.out(attended(q, k, v))

    layers = {"qkv": nn.Linear(12, 3 * INNER, bias=False), "out": nn.Linear(INNER, 12)}
    bias = {f"{x}_bias": nn.Parameter(torch.randn(INNER)) for x in "qv"}
    net = Net(run, **layers, **bias)
    net.register_buffer("k_bias", torch.zeros(INNER), persistent=False)
    return net


def bias_zeroed() -> nn.Module:
    """torchvision's Swin v2: the bias of the keys is set to zero in a copy."""

    def run(n: Any, x: Tensor) -> Tensor:
        bias = n.qkv.bias.clone()
        third = bias.numel() // 3
        bias[third : 2 * third].zero_()
        qkv = linear(x, n.qkv.weight, bias).unflatten(-1, (3, -1, WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return n.out(attended(q, k, v))

    return Net(run, qkv=nn.Linear(12, 3 * INNER), out=nn.Linear(INNER, 12))


def bias_by_heads() -> nn.Module:
    """DeBERTa: a bias of all queries, cut into heads as they are."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (heads_apart(layer(x)) for layer in (n.q, n.k, n.v))
        return n.out(attended(q + heads_apart(n.bias[None, None]), k, v))

    layers = {name: nn.Linear(12, INNER, bias=False) for name in "qkv"}
    bias = nn.Parameter(torch.randn(INNER))
    return Net(run, out=nn.Linear(INNER, 12), bias=bias, **layers)


def partly_rotated() -> nn.Module:
    """GPT-NeoX: some features of every head are changed, then joined with the others."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (heads_apart(layer(x)) for layer in (n.q, n.k, n.v))
        q = torch.cat((-q.unflatten(-1, (2, -1))[..., 0, :], q[..., 3:]), dim=-1)
        return n.out(attended(q, k, v))

    layers = {name: nn.Linear(12, INNER) for name in "qkv"}
    return Net(run, out=nn.Linear(INNER, 12), **layers)


class Table(nn.Module):
    """A bias per head, looked up; its shape is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (5, 5, HEADS)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("places", torch.arange(25) % 9)

    def bias(self) -> Tensor:
        return self.table[self.places].view(self.shape).permute(2, 0, 1)


def bias_of_a_method() -> nn.Module:
    """timm's relative positions: the module with the number does not run, a method of it does."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (heads_apart(layer(x)) for layer in (n.q, n.k, n.v))
        out = (q @ k.mT + n.table.bias()).softmax(-1) @ v
        return n.out(out.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(12, INNER) for name in "qkv"}
    return Net(run, out=nn.Linear(INNER, 12), table=Table(), **layers)


PRUNABLE: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "mixed_kernels": (mixed_kernels, image(), 16),
    "gated": (gated, WORDS, 10),
    "one_number_for_two_parts": (one_number_for_two_parts, WORDS, 12),
    "sliced": (sliced, WORDS, 9),
    "bias_in_three": (bias_in_three, WORDS, HEADS),
    "bias_zeroed": (bias_zeroed, WORDS, HEADS),
    "bias_by_heads": (bias_by_heads, WORDS, HEADS),
    "partly_rotated": (partly_rotated, WORDS, HEADS),
    "bias_of_a_method": (bias_of_a_method, WORDS, HEADS),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("name", PRUNABLE)
def test_parts_lose_channels_exactly(name: str) -> None:
    build, example, count = PRUNABLE[name]
    units = trace_units(built(build), example)
    assert sum(g.size for g in units.prunable) == count
    for seed in range(3):
        plan = random_plan(units, 0.5, torch.Generator().manual_seed(seed))
        assert_laws(lambda: built(build), example, units, plan)


def halves_of_the_width() -> nn.Module:
    """Two equal halves whose channels other layers read: the border follows the whole width."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = n.fc(x)
        half = x.shape[-1] // 2
        return n.one(x[..., :half].relu()) + n.two(x[..., half:].relu())

    layers = {"fc": nn.Linear(12, 8), "one": nn.Linear(4, 12), "two": nn.Linear(4, 12)}
    return Net(run, **layers)


def part_at_a_fixed_place() -> nn.Module:
    """Three channels from the fifth on, whatever comes before; they must stay."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = n.fc(x).relu()
        return torch.cat((n.one(x), x[..., 4:7]), dim=-1)

    return Net(run, fc=nn.Linear(12, 20), one=nn.Linear(20, 12))


def every_second() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.fc(x).relu()
        return n.one(x) + n.two(x[..., ::2])

    layers = {"fc": nn.Linear(12, 8), "one": nn.Linear(8, 12), "two": nn.Linear(4, 12)}
    return Net(run, **layers)


def fixed_sizes() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        a, b = n.fc(x).split([5, 3], dim=-1)
        return n.one(a.relu()) + n.two(b.relu())

    layers = {"fc": nn.Linear(12, 8), "one": nn.Linear(5, 12), "two": nn.Linear(3, 12)}
    return Net(run, **layers)


@pytest.mark.parametrize(
    "build", [halves_of_the_width, part_at_a_fixed_place, every_second, fixed_sizes]
)
def test_parts_that_the_code_fixes_stay(build: Callable[[], nn.Module]) -> None:
    units = trace_units(built(build), WORDS)
    assert not any("fc.weight" in {s.tensor for s in g.slices} for g in units.prunable)


def test_what_comes_before_a_fixed_part_stays_too() -> None:
    reasons = {g.reason for g in trace_units(built(part_at_a_fixed_place), WORDS).groups}
    assert any("starts at a position written in the code" in r for r in reasons), reasons
