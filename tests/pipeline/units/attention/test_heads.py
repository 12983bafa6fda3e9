"""torch's MultiheadAttention, opened: the same outputs, and heads that go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.groups import Granularity
from pipeline.units.heads import OpenAttention, as_wide_as_values, with_open_heads
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan

WIDTH, HEADS = 24, 6


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Crossed(nn.Module):
    """Queries of one width look at keys and values of others."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=10, vdim=14, batch_first=True)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.attention(x, key, value, need_weights=False)[0]
        return x + out


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder() -> nn.Module:
    return nn.TransformerDecoderLayer(WIDTH, HEADS, 32, bias=False)


NETWORKS: dict[str, tuple[Any, Any]] = {
    "encoder": (encoder, values(2, 7, WIDTH)),
    "decoder": (decoder, (values(5, 2, WIDTH), values(7, 2, WIDTH, seed=1))),
    "crossed": (
        Crossed,
        (values(2, 5, WIDTH), values(2, 7, 10, seed=1), values(2, 7, 14, seed=2)),
    ),
}


def opened(name: str) -> nn.Module:
    torch.manual_seed(0)
    return with_open_heads(NETWORKS[name][0]())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_head_is_a_unit(name: str) -> None:
    example = _single(NETWORKS[name][1])
    layers = [p for p, m in opened(name).named_modules() if isinstance(m, OpenAttention)]
    groups = trace_units(opened(name), example).by_name()
    for path in layers:
        assert groups[path].prunable
        assert groups[path].size == HEADS
    whole = trace_units(opened(name), example, attention="none").by_name()
    assert not any(whole[path].prunable for path in layers)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_laws(name: str, fraction: float) -> None:
    example = _single(NETWORKS[name][1])
    units = trace_units(opened(name), example)
    plan = random_plan(units, fraction, torch.Generator().manual_seed(3))
    for dtype in (torch.float64, torch.float32):
        assert_laws(lambda: opened(name), example, units, plan, dtype)


@pytest.mark.parametrize("attention", ["heads", "head_dim", "query_key"])
def test_laws_when_only_attention_is_cut(attention: Any) -> None:
    example = _single(NETWORKS["encoder"][1])
    units = trace_units(opened("encoder"), example, attention=attention)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(3))
    keep = {n: m for n, m in plan.keep.items() if "self_attn" in n}
    assert keep
    plan = PruningPlan(Granularity.STRUCTURED, keep)
    assert_laws(lambda: opened("encoder"), example, units, plan)


def test_surgery_leaves_fewer_heads_of_the_same_width() -> None:
    model = opened("crossed")
    units = trace_units(model, _single(NETWORKS["crossed"][1]))
    keep = {"attention": torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool)}
    shrink(PruningPlan(Granularity.STRUCTURED, keep), model, units)
    assert (model.attention.num_heads, model.attention.head_dim) == (2, 4)
    assert model.attention.q_proj_weight.shape == (8, WIDTH)
    assert model.attention.in_proj_bias.shape == (24,)
    assert model.attention.out_proj.weight.shape == (WIDTH, 8)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_laws_of_queries_and_keys(name: str, fraction: float) -> None:
    example = _single(NETWORKS[name][1])
    units = trace_units(opened(name), example, attention="query_key")
    layers = [p for p, m in opened(name).named_modules() if isinstance(m, OpenAttention)]
    assert [units.by_name()[path].size for path in layers] == [WIDTH // HEADS] * len(layers)
    plan = random_plan(units, fraction, torch.Generator().manual_seed(3))
    for dtype in (torch.float64, torch.float32):
        shrunk = assert_laws(lambda: opened(name), example, units, plan, dtype)
    for path in layers:
        layer = shrunk.get_submodule(path)
        assert (layer.num_heads, layer.head_dim, layer.scale) == (HEADS, 4, 0.5)
        assert layer.out_proj.in_features == WIDTH


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_and_outputs_stay(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().double().eval()
    other = with_open_heads(copy.deepcopy(model))
    assert list(other.state_dict()) == list(model.state_dict())
    for a, b in zip(*(outputs(m, NETWORKS[name][1]) for m in (model, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


MASKS: list[dict[str, Any]] = [
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1), "is_causal": True},
    {"attn_mask": values(2 * HEADS, 5, 5), "need_weights": False},
    {
        "attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 2),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    },
    {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", range(len(MASKS)))
def test_masks_and_weights_are_those_of_torch(batch_first: bool, case: int) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first).double().eval()
    other = with_open_heads(copy.deepcopy(model))
    x = values(2, 5, WIDTH) if batch_first else values(5, 2, WIDTH)
    for inputs, given in ((x, MASKS[case]), (values(5, WIDTH), {})):
        a, b = (m(inputs, inputs, inputs, **given) for m in (model, other))
        torch.testing.assert_close(a[0], b[0], rtol=1e-12, atol=1e-12)
        assert (a[1] is None) == (b[1] is None)
        if a[1] is not None:
            torch.testing.assert_close(a[1], b[1], rtol=1e-12, atol=1e-12)


def test_narrow_queries_keep_the_fused_kernel_and_are_counted_narrow() -> None:
    """One width for torch's kernels; who follows the operators sees the real ones."""
    q, k, v = values(2, 3, 5, 2), values(2, 3, 5, 2, seed=1), values(2, 3, 5, 4, seed=2)
    wide = as_wide_as_values(q, k, v)
    assert [x.shape[-1] for x in wide] == [4, 4]
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(*wide, v, scale=0.5), attend(q, k, v, scale=0.5))
    with TorchDispatchMode():
        assert as_wide_as_values(q, k, v) == (q, k)
    assert as_wide_as_values(v, v, v) == (v, v)


def test_a_mask_for_other_heads_is_refused() -> None:
    attention = with_open_heads(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)).double()
    x = values(2, 5, WIDTH)
    with pytest.raises(ValueError, match="attn_mask is for 8 heads"):
        attention(x, x, x, attn_mask=values(8, 5, 5))
    with pytest.raises(RuntimeError, match="is_causal"):
        attention(x, x, x, is_causal=True)


def test_what_is_added_to_keys_leaves_torch_in_charge() -> None:
    for extra in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        layer = nn.MultiheadAttention(WIDTH, HEADS, **extra)  # type: ignore[arg-type]
        assert type(with_open_heads(layer)) is nn.MultiheadAttention


def _single(example: Any) -> Any:
    return example.float() if isinstance(example, Tensor) else tuple(x.float() for x in example)
