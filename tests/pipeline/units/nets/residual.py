"""Residual streams, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolutions(nn.Module):
    """Two blocks on an identity, in place as torchvision does it, and one on a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(_conv_block(8, 8) for _ in range(2))
        self.wider = _conv_block(8, 12)
        self.project = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            out = block(x)
            out += x
            x = F.relu(out, inplace=True)
        x = self.wider(x) + self.project(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def _conv_block(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
    )


class Transformer(nn.Module):
    """Attention and feed-forward on a stream under LayerNorm, scaled per channel."""

    def __init__(self, layer_scale: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5)) if layer_scale else None
        self.head = nn.Linear(8, 3)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(heads)
        return out if self.gamma is None else out * self.gamma

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        out: Tensor = self.head(self.norms[2](x).mean(1))
        return out


class Shared(nn.Module):
    """One layer in two branches: neither can be zero alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.layer(x.relu())
        x = x + self.layer(x.sin())
        out: Tensor = self.last(x)
        return out


class Read(nn.Module):
    """What is added is read elsewhere too; and a branch that ends in a sigmoid is never zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        added = self.one(x)
        x = x + added
        x = x + self.two(x).sigmoid()
        return self.last(x), added
