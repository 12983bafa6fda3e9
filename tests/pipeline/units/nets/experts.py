"""Mixtures of experts in the usual forms, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Listed(nn.Module):
    """Experts are modules of a list, each with a run of the tokens that chose it."""

    def __init__(self, width: int = 6, experts: int = 5, k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.k = experts, k
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.gate(tokens).softmax(-1).topk(self.k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for number in range(self.num_experts):
            token, place = torch.where(chosen == number)
            if len(token):
                out[token] += self.experts[number](tokens[token]) * weights[token, place, None]
        return out.view_as(x)


class Stacked(nn.Module):
    """All experts in one tensor, all of them computed (no top k); the router has a bias."""

    def __init__(self, width: int = 6, experts: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, 8))
        self.down = nn.Parameter(torch.randn(experts, 8, width))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("btd,edf->btef", x, self.up))
        out = torch.einsum("btef,efd->bted", hidden, self.down)
        return (out * share[..., None]).sum(-2)


class Biased(Listed):
    """Chosen by score plus a bias per expert that is a buffer, weighted by the score alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = _BiasedGate(6, 5, self.k)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.gate(tokens)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                out.index_add_(0, token, expert(tokens[token]) * weights[token, place, None])
        return out.view_as(x)


class _BiasedGate(nn.Module):
    def __init__(self, width: int, experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.randn(experts, width))
        self.register_buffer("bias", torch.linspace(-1, 3, experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        chosen = (scores + self.bias).topk(self.k)[1]
        weights = scores.gather(-1, chosen)
        return weights / weights.sum(-1, keepdim=True), chosen


class Written(Listed):
    """Its code writes the number of experts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.gate(x).shape[-1] / 5)


class Told(nn.Module):
    """Its logits leave the network, or its router's weight is read by other code."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.first, self.mixture, self.head = nn.Linear(4, 6), Listed(), nn.Linear(6, 3)
        self.where = where

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x)
        out = self.head(hidden + self.mixture(hidden))
        if self.where == "output":
            return out, self.mixture.gate(hidden)
        return out, hidden @ self.mixture.gate.weight.t() @ torch.ones(5, 1)


class Around(nn.Module):
    """A mixture between an embedding and a head."""

    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.mixture = mixture
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.head(hidden + self.mixture(hidden))
        return out
