"""Attention whose code takes the width of its heads from the input, opened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer

from pipeline.units.heads import with_open_heads
from pipeline.units.open_sizes import opened
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan

WIDTH, HEADS = 24, 6
WORDS = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """As in timm: every size from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, C))
        return out


class Separate(nn.Module):
    """Queries of one token; the width of a head has a name, sizes are a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def split(self, x: Tensor) -> Tensor:
        b, n, dim = x.size()
        return x.view((b, n, self.heads, dim // self.heads)).transpose(1, 2)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        batch, width = x.shape[0], x.shape[-1]
        q, k, v = (
            self.split(self.q(x[:, first : first + 1])),
            *(self.split(m(x)) for m in (self.k, self.v)),
        )
        x = (q * 0.5 @ k.mT).softmax(-1) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, 1, width))
        return out


class Packed(nn.Module):
    """As Phi-3: one projection of queries, keys and values, cut by a number of the config."""

    def __init__(self, heads: int = HEADS, kv: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=heads)
        self.head_dim = WIDTH // heads
        self.num_key_value_groups = heads // kv
        self.num_key_value_heads = kv
        packed = WIDTH + 2 * kv * self.head_dim
        self.qkv, self.proj = nn.Linear(WIDTH, packed), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape, qkv = (*x.shape[:-1], -1, self.head_dim), self.qkv(x)
        end, step = (
            self.config.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        )
        q = qkv[..., :end].view(shape).transpose(1, 2)
        k = qkv[..., end : end + step].view(shape).transpose(1, 2)
        v = qkv[..., end + step :].view(shape).transpose(1, 2)
        k, v = (repeated(z, self.num_key_value_groups) for z in (k, v))
        x = (q @ k.mT).softmax(-1) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(*shape[:-2], -1))
        return out


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, words, width = x.shape
    wide = x[:, :, None].expand(batch, heads, times, words, width)
    return wide.reshape(batch, heads * times, words, width)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 12, [2, 1], [3, 6], [2, 2], num_classes=4)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "fused": (Fused, WORDS, 1),
    "separate": (Separate, WORDS, 1),
    "packed": (Packed, WORDS, 1),
    "as many groups as heads": (lambda: Packed(4, 2), WORDS, 1),
    "swin": (swin, IMAGE, 3),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


def heads(model: nn.Module, example: Tensor) -> list[str]:
    groups = trace_units(model, example).prunable
    return [g.name for g in groups if any(s.index.shape[1] > 1 for s in g.slices)]


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_are_units_once_opened(name: str) -> None:
    example, count = NETWORKS[name][1:]
    assert heads(built(name), example) == []
    assert len(heads(with_open_heads(built(name)), example)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dense_network_stays_the_same(name: str) -> None:
    example, model = NETWORKS[name][1], built(name)
    other = with_open_heads(copy.deepcopy(model))
    assert list(other.state_dict()) == list(model.state_dict())
    for one, two in zip(outputs(model, example), outputs(other, example), strict=True):
        assert torch.equal(one, two)
    assert all(
        isinstance(m, type(n)) for m, n in zip(other.modules(), model.modules(), strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_laws(name: str) -> None:
    example = NETWORKS[name][1]
    units = trace_units(with_open_heads(built(name)), example)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(3))
    assert_laws(lambda: with_open_heads(built(name)), example, units, plan)


def test_a_class_is_opened_once_and_only_where_it_needs_it() -> None:
    assert opened(Fused) is opened(Fused)
    assert opened(opened(Fused)) is opened(Fused)
    assert opened(ShiftedWindowAttention) is not ShiftedWindowAttention
    for kind in (nn.Linear, nn.MultiheadAttention, SwinTransformer):
        assert opened(kind) is kind


def t5() -> nn.Module:
    """Heads of cross attention have no bias of positions, and T5 adds zeros for as many."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=30, **sizes)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def test_heads_of_t5s_cross_attention_are_units() -> None:
    words = {"input_ids": torch.arange(6)[None], "decoder_input_ids": torch.arange(5)[None] + 7}
    example = {**words, "use_cache": False}
    opened_t5 = with_open_heads(t5())
    dense = t5()
    assert dense.state_dict().keys() == opened_t5.state_dict().keys()
    for one, other in zip(outputs(dense, example), outputs(opened_t5, example), strict=True):
        assert torch.equal(one, other)
    units = trace_units(opened_t5, example)
    heads = {f"decoder.block.{i}.layer.1.EncDecAttention.q" for i in range(2)}
    assert heads <= {g.name for g in units.prunable if g.size == 4}
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    shrunk = assert_laws(lambda: with_open_heads(t5()), example, units, plan)
    assert shrunk.decoder.block[1].layer[1].EncDecAttention.q.weight.shape == (8, 16)
    assert not torch.equal(outputs(shrunk.float(), example)[0], outputs(dense, example)[0])
