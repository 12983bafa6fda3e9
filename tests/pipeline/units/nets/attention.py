"""One network per way of writing attention, and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.pipeline.units.cases import case

TOKENS, HIDDEN, HEADS, WIDTH = 5, 12, 3, 4


TEXT = torch.randn(2, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(5))


Run = Callable[..., Tensor]


class Attention(nn.Module):
    """Linear layers by name, sizes as attributes, a forward given as a function of (self, x)."""

    def __init__(self, run: Run, sizes: dict[str, int], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, value in {**sizes, **layers}.items():
            setattr(self, name, value)
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        return x + self._run(self, x)


def qkvo(keys: int = HEADS, **more: nn.Module) -> dict[str, nn.Module]:
    return {
        "q": nn.Linear(HIDDEN, HEADS * WIDTH),
        "k": nn.Linear(HIDDEN, keys * WIDTH),
        "v": nn.Linear(HIDDEN, keys * WIDTH),
        "o": nn.Linear(HEADS * WIDTH, HIDDEN),
        **more,
    }


def apart(x: Tensor, width: int = WIDTH) -> Tensor:
    """(B, T, H * D) -> (B, H, T, D)."""
    return x.view(*x.shape[:2], -1, width).transpose(1, 2)


def together(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = WIDTH**-0.5) -> Tensor:
    return (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v


@case(HEADS, example=TEXT)
def heads() -> nn.Module:
    """Heads are what a view leaves open: nothing but the layers shrinks."""

    def run(n: Any, x: Tensor) -> Tensor:
        return n.o(together(attend(apart(n.q(x)), apart(n.k(x)), apart(n.v(x)))))

    return Attention(run, {}, **qkvo())


@case(HEADS, example=TEXT)
def heads_by_attribute() -> nn.Module:
    """Old style: the number of heads and the width of all of them are attributes."""

    def run(n: Any, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], n.num_heads, n.head_dim).transpose(1, 2)

        mixed = attend(split(n.q(x)), split(n.k(x)), split(n.v(x)))
        return n.o(mixed.transpose(1, 2).reshape(*x.shape[:2], n.all_head_size))

    sizes = {"hidden": HIDDEN, "num_heads": HEADS, "head_dim": WIDTH}
    return Attention(run, {**sizes, "all_head_size": HEADS * WIDTH}, **qkvo())


@case(HEADS, example=TEXT)
def heads_fused_scaled_dot_product() -> nn.Module:
    """One layer makes q, k and v; a causal mask; torch's own fused attention."""

    def run(n: Any, x: Tensor) -> Tensor:
        qkv = n.qkv(x).view(*x.shape[:2], 3, n.num_heads, WIDTH).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        return n.o(together(y))

    layers = {"qkv": nn.Linear(HIDDEN, 3 * HIDDEN), "o": nn.Linear(HIDDEN, HIDDEN)}
    return Attention(run, {"num_heads": HEADS}, **layers)


@case(HEADS, example=TEXT)
def heads_fused_chunk_with_mask() -> nn.Module:
    """q, k and v are thirds of one layer; scores are masked and softened by `where`."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (apart(y) for y in n.qkv(x).chunk(3, -1))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / WIDTH**0.5
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = torch.where(allowed, scores, torch.full_like(scores, -1e9))
        return n.o(together(torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)))

    return Attention(
        run, {}, qkv=nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), o=nn.Linear(HIDDEN, HIDDEN)
    )


class Rope(nn.Module):
    """Rotary positions (half rotation) from a buffer of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 0.5 ** torch.arange(WIDTH // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1).to(x)
        left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()


class RMS(nn.Module):
    """Root mean square of the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def grouped(keys: int) -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = n.rope(n.qn(apart(n.q(x)))), n.rope(n.kn(apart(n.k(x)))), apart(n.v(x))
        return n.o(together(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))

    layers = {
        **{"q": nn.Linear(HIDDEN, 4 * WIDTH), "k": nn.Linear(HIDDEN, keys * WIDTH)},
        **{"v": nn.Linear(HIDDEN, keys * WIDTH), "o": nn.Linear(4 * WIDTH, HIDDEN)},
        **{"qn": RMS(WIDTH), "kn": RMS(WIDTH), "rope": Rope()},
    }
    return Attention(run, {}, **layers)


@case(2, example=TEXT)
def grouped_queries() -> nn.Module:
    """Two key-value heads for four query heads; rope, and a norm within every head."""
    return grouped(2)


@case(0, example=TEXT)
def one_key_for_all_queries() -> nn.Module:
    """A shared value is not zero when one query head is."""
    return grouped(1)


@case(WIDTH, example=TEXT, attention="head_dim")
def features() -> nn.Module:
    """Queries, keys and values have one attribute for their width, so they shrink together."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (apart(layer(x), n.head_dim) for layer in (n.q, n.k, n.v))
        return n.o(together(attend(q, k, v)))

    return Attention(run, {"head_dim": WIDTH}, **qkvo())


@case(2 * WIDTH, example=TEXT, attention="head_dim")
def features_of_keys_and_of_values() -> nn.Module:
    """The number of heads is written in the code, the widths are free."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (
            y(x).view(*x.shape[:2], n.num_heads, -1).transpose(1, 2) for y in (n.q, n.k, n.v)
        )
        return n.o(together(attend(q, k, v)))

    return Attention(run, {"num_heads": HEADS}, **qkvo())


@case(WIDTH, example=TEXT, attention="query_key")
def features_of_keys_alone() -> nn.Module:
    """The same, values untouched."""
    return features_of_keys_and_of_values()


@case(0, example=TEXT, attention="query_key")
def keys_as_wide_as_values() -> nn.Module:
    """One attribute for the width of all three: values cannot stay as they are."""
    return features()


@case(1 + WIDTH, example=TEXT, attention="head_dim")
def constant_within_heads() -> nn.Module:
    """A constant as wide as a head, for all heads: queries and keys keep their width."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (
            y(x).view(*x.shape[:2], n.num_heads, -1).transpose(1, 2) for y in (n.q, n.k, n.v)
        )
        return n.o(together(attend(q * torch.arange(1, 1 + WIDTH, device=x.device), k, v)))

    return Attention(run, {"num_heads": HEADS}, **qkvo())


@case(WIDTH, example=TEXT, attention="head_dim")
def scale_computed_from_the_width() -> nn.Module:
    """Without a scale of its own the fused attention takes it from queries, which so must stay."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = (
            y(x).view(*x.shape[:2], n.num_heads, -1).transpose(1, 2) for y in (n.q, n.k, n.v)
        )
        return n.o(together(F.scaled_dot_product_attention(q, k, v)))

    return Attention(run, {"num_heads": HEADS}, **qkvo())


@case(0, example=TEXT, attention="none")
def attention_left_whole() -> nn.Module:
    return heads()


@case(0, example=TEXT)
def head_width_computed_from_the_stream() -> nn.Module:
    """x.shape[-1] // heads is another width for another number of heads."""

    def run(n: Any, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], n.num_heads, x.shape[-1] // n.num_heads)
        q, k, v = (y(x).view(shape).transpose(1, 2) for y in (n.q, n.k, n.v))
        return n.o(together(attend(q, k, v)))

    return Attention(run, {"num_heads": HEADS}, **qkvo())


@case(7, example=TEXT)
def multihead_attention_of_torch() -> nn.Module:
    """Its sizes are checked against each other; what follows can be pruned."""

    def run(n: Any, x: Tensor) -> Tensor:
        y, _ = n.attention(x, x, x)
        return n.down(F.gelu(n.up(n.norm(x + y))))

    attention = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)
    layers = {"up": nn.Linear(HIDDEN, 7), "down": nn.Linear(7, HIDDEN)}
    return Attention(run, {}, attention=attention, norm=nn.LayerNorm(HIDDEN), **layers)


@case(7, example=TEXT)
def transformer_layer_of_torch() -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(HIDDEN, HEADS, 7, batch_first=True), nn.Linear(HIDDEN, 4)
    )


@case(HEADS, example=TEXT)
def linear_attention() -> nn.Module:
    """softmax(q) @ (softmax(k).T @ v): features on both sides, but heads can go."""

    def run(n: Any, x: Tensor) -> Tensor:
        q, k, v = apart(n.q(x)).softmax(-1), apart(n.k(x)).softmax(-2), apart(n.v(x))
        return n.o(together(q @ (k.transpose(-1, -2) @ v)))

    return Attention(run, {}, **qkvo())


@case(6, example=TEXT)
def gated_linear_unit() -> nn.Module:
    """SwiGLU: a product of two projections."""

    def run(n: Any, x: Tensor) -> Tensor:
        return n.down(F.silu(n.gate(x)) * n.up(x))

    layers = {"gate": nn.Linear(HIDDEN, 6), "up": nn.Linear(HIDDEN, 6)}
    return Attention(run, {}, **layers, down=nn.Linear(6, HIDDEN))
