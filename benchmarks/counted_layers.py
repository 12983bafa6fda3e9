"""Layers with known numbers of multiply-accumulates, for `benchmarks.counters` and its test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS, WIDTH, HEADS = 10, 32, 4


class Calls(nn.Module):
    """A module that calls a function of the input and one layer or parameter."""

    def __init__(
        self, run: Callable[[Calls, Tensor], Tensor], inner: nn.Module | nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@dataclass(frozen=True)
class Row:
    """A layer, its input, and its multiply-accumulates, counted by hand."""

    name: str
    build: Callable[[], nn.Module]
    example: Tensor
    by_hand: int


def _image(channels: int = 16) -> Tensor:
    return torch.randn(1, channels, 8, 8)


def _sequence(width: int = WIDTH) -> Tensor:
    return torch.randn(1, TOKENS, width)


def _attention_module() -> nn.Module:
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    return Calls(lambda m, x: m.inner(x, x, x, need_weights=False)[0], layer)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _fused(_: Calls, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(_heads(x), _heads(x), _heads(x))


def _eager(_: Calls, x: Tensor) -> Tensor:
    scores = torch.matmul(_heads(x), _heads(x).transpose(-2, -1)) / math.sqrt(WIDTH / HEADS)
    return torch.matmul(scores.softmax(-1), _heads(x))


def _einsum() -> nn.Module:
    weight = nn.Parameter(torch.randn(WIDTH, 48))
    return Calls(lambda m, x: torch.einsum("btd,de->bte", x, m.inner), weight)


def rows() -> list[Row]:
    """Layers in the order of the table."""
    up = {"stride": 2, "padding": 1, "output_padding": 1}
    products = 2 * TOKENS * TOKENS * WIDTH
    return [
        Row("convolution", lambda: nn.Conv2d(16, 32, 3, padding=1), _image(), 64 * 32 * 16 * 9),
        Row(
            "  4 groups",
            lambda: nn.Conv2d(16, 32, 3, padding=1, groups=4),
            _image(),
            64 * 32 * 4 * 9,
        ),
        Row(
            "  dilation 2",
            lambda: nn.Conv2d(16, 32, 3, padding=2, dilation=2),
            _image(),
            64 * 32 * 16 * 9,
        ),
        Row(
            "  transposed, stride 2",
            lambda: nn.ConvTranspose2d(16, 32, 3, **up),
            _image(),
            64 * 32 * 16 * 9,
        ),
        Row("linear", lambda: nn.Linear(64, 32), torch.randn(1, 64), 64 * 32),
        Row("linear, 10 tokens", lambda: nn.Linear(64, 32), _sequence(64), TOKENS * 64 * 32),
        Row("batch norm", lambda: nn.BatchNorm2d(16), _image(), 0),
        Row("ReLU", nn.ReLU, _image(), 0),
        Row("embedding", lambda: nn.Embedding(100, WIDTH), torch.arange(TOKENS)[None], 0),
        Row(
            "LSTM",
            lambda: nn.LSTM(16, WIDTH, batch_first=True),
            _sequence(16),
            TOKENS * 4 * WIDTH * (16 + WIDTH),
        ),
        Row(
            "attention, module",
            _attention_module,
            _sequence(),
            4 * TOKENS * WIDTH * WIDTH + products,
        ),
        Row("attention, fused", lambda: Calls(_fused), _sequence(), products),
        Row("attention, eager", lambda: Calls(_eager), _sequence(), products),
        Row("einsum", _einsum, _sequence(), TOKENS * WIDTH * 48),
    ]


def networks() -> list[Row]:
    """Two networks of torchvision; counted by hand: convolutions, linear layers, attention."""
    from torchvision.models import resnet50, vit_b_16

    image = torch.randn(1, 3, 224, 224)
    patches, tokens = 196 * 768 * 3 * 16 * 16, 197
    layer = 12 * tokens * 768 * 768 + 2 * tokens * tokens * 768
    return [
        Row("ResNet-50, 224", resnet50, image, 4_089_184_256),
        Row("ViT-B/16, 224", vit_b_16, image, patches + 12 * layer + 768 * 1000),
    ]
