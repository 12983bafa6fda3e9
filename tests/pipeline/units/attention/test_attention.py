"""Transformers: units of attention in torch, torchvision and Hugging Face networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.measure.count import MacsModel, count
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import AllDouble
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from pipeline.units.trace.tracer import Attention
from tests.pipeline.units.laws import assert_laws, random_plan
from tests.pipeline.units.nets import CASES

LAYERS, HIDDEN, HEADS, FFN, WORDS = 2, 32, 4, 48, 50
WIDTH = HIDDEN // HEADS


@pytest.mark.parametrize(
    ("name", "group", "words"),
    [
        ("head_width_computed_from_the_stream", "q", "the smaller network fails at view"),
        ("scale_computed_from_the_width", "q", "a number that depends on the width"),
        ("attention_left_whole", "q", "attention is left whole"),
        ("multihead_attention_of_torch", "attention", "mean runs over its channels"),
        ("transformer_layer_of_torch", "0.self_attn", "unflatten"),
        ("features_of_keys_alone", "v", "values are left whole"),
        ("keys_as_wide_as_values", "q", "view has a size written in the code"),
        ("one_key_for_all_queries", "q", "mean runs over its channels"),
    ],
)
def test_reasons_in_words(name: str, group: str, words: str) -> None:
    found = CASES[name].units().by_name()[group]
    assert not found.prunable
    assert words in found.reason


def roles(units: Units, group: str) -> list[tuple[str, int, int]]:
    return [(s.tensor, s.dim, s.index.shape[1]) for s in units.by_name()[group].slices]


def test_what_a_head_is() -> None:
    want = [(f"{n}.{t}", 0, 4) for n in "qkv" for t in ("weight", "bias")]
    assert roles(CASES["heads"].units(), "q") == [*want, ("o.weight", 1, 4)]
    fused = roles(CASES["heads_fused_scaled_dot_product"].units(), "qkv")
    assert fused == [("qkv.weight", 0, 12), ("qkv.bias", 0, 12), ("o.weight", 1, 4)]
    # Two query heads of four go with one of two keys and values; the norms in a head stay.
    assert roles(CASES["grouped_queries"].units(), "q") == [
        *(("q.weight", 0, 8), ("q.bias", 0, 8), ("k.weight", 0, 4), ("k.bias", 0, 4)),
        *(("v.weight", 0, 4), ("v.bias", 0, 4), ("o.weight", 1, 8)),
    ]


def test_what_a_feature_is() -> None:
    units = CASES["features_of_keys_and_of_values"].units()
    want = [(f"{n}.{t}", 0, 3) for n in "qk" for t in ("weight", "bias")]
    assert roles(units, "q") == want
    assert roles(units, "v") == [("v.weight", 0, 3), ("v.bias", 0, 3), ("o.weight", 1, 3)]


def test_attributes_follow_the_units() -> None:
    case = CASES["heads_by_attribute"]
    model, units = case.build(), case.units()
    assert {a.name for a in units.attributes} == {"num_heads", "all_head_size"}
    shrink(random_plan(units, 0.7, torch.Generator().manual_seed(0)), model, units)
    assert (model.num_heads, model.head_dim, model.all_head_size) == (1, 4, 4)
    assert model.hidden == 12


def hugging_face(kind: str, implementation: str) -> nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    text: dict[str, Any] = {"vocab_size": WORDS, "attn_implementation": implementation}
    if kind == "distilbert":
        sizes = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": FFN}
        config = hf.DistilBertConfig(**sizes, **text, max_position_embeddings=16)
        return hf.DistilBertForSequenceClassification(config)
    if kind == "gpt2":
        sizes = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": FFN}
        ends = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
        return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **text, **ends, n_positions=16))
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": FFN}
    sizes["num_attention_heads"] = HEADS
    if kind == "llama":
        more = {"num_key_value_heads": 2, "use_cache": False}
        return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **text, **more))
    if kind == "vit":
        picture = {"image_size": 16, "patch_size": 4, "attn_implementation": implementation}
        return hf.ViTForImageClassification(hf.ViTConfig(**sizes, **picture))
    config = hf.BertConfig(**sizes, **text, max_position_embeddings=16)
    return hf.BertForSequenceClassification(config)


def example(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    return {
        "input_ids": torch.randint(0, WORDS, (2, 7), generator=generator),
        "attention_mask": mask,
    }


UNITS: dict[tuple[str, Attention], int] = {
    ("bert", "heads"): LAYERS * (HEADS + FFN) + HIDDEN,
    ("bert", "head_dim"): LAYERS * (WIDTH + FFN) + HIDDEN,
    ("bert", "query_key"): LAYERS * FFN + HIDDEN,
    ("distilbert", "heads"): LAYERS * (HEADS + FFN) + HIDDEN,
    ("gpt2", "heads"): LAYERS * (HEADS + FFN),
    ("gpt2", "head_dim"): LAYERS * (WIDTH + FFN),
    ("llama", "heads"): LAYERS * (2 + FFN) + HIDDEN,
    ("llama", "none"): LAYERS * FFN + HIDDEN,
    ("vit", "heads"): LAYERS * (HEADS + FFN),
}
"""The poolers and heads of BERT and DistilBERT have HIDDEN inner features of their own. Of queries
and keys none before `models/_blocks/attention.py` opens the layers, but the rest goes."""


def check(
    build: Callable[[], nn.Module], inputs: dict[str, Tensor], units: Units, fraction: float
) -> None:
    plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32):
        assert_laws(build, inputs, units, plan, dtype)
    model = build()
    costs = MacsModel(model, inputs, units)
    shrink(plan, model, units)
    counts = count(model, inputs)
    assert (costs.params(plan), costs.macs(plan)) == (counts.params, counts.macs)


@pytest.mark.parametrize(("kind", "attention"), UNITS)
def test_hugging_face(kind: str, attention: Attention) -> None:
    pytest.importorskip("transformers")
    implementation = "eager" if attention == "heads" else "sdpa"
    units = trace_units(hugging_face(kind, implementation), example(kind), attention=attention)
    assert sum(g.size for g in units.prunable) == UNITS[kind, attention]
    with AllDouble():  # Llama's norms cast to float32
        check(lambda: hugging_face(kind, implementation), example(kind), units, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama", "vit"])
def test_hugging_face_with_fused_attention(kind: str) -> None:
    pytest.importorskip("transformers")
    units = trace_units(hugging_face(kind, "sdpa"), example(kind))
    assert sum(g.size for g in units.prunable) == UNITS[kind, "heads"]
    dead = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in units.prunable if g.size < 8}
    plan = PruningPlan(Granularity.STRUCTURED, dead)
    with AllDouble():  # Llama's norms cast to float32
        check(lambda: hugging_face(kind, "sdpa"), example(kind), units, 0.9)
        assert_laws(lambda: hugging_face(kind, "sdpa"), example(kind), units, plan)


def test_bert_base_has_the_groups_of_the_paper() -> None:
    """36,864 inner features of size 769 (weights and bias of a row); heads of 3 * 64 * 769."""
    hf = pytest.importorskip("transformers")
    inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}

    def sizes(attention: Attention, layers: int) -> list[tuple[int, int]]:
        """(units, parameters of the zero-invariant part of one unit) of every group."""
        with torch.device("meta"):
            model = hf.BertModel(hf.BertConfig(num_hidden_layers=layers), add_pooling_layer=False)
        parameters = dict(model.named_parameters())
        return [
            (g.size, sum(parameters[s.tensor][0].numel() * s.index.shape[1] for s in g.zig))
            for g in trace_units(model, inputs, attention=attention).prunable
        ]

    found = sizes("heads", 12)
    assert found == [(12, 3 * 64 * 769), (3072, 769)] * 12
    assert sum(n for n, _ in found if n == 3072) == 36_864
    # One attribute for the width of all three: values go along. The authors' unit, 2 * 12 * 769, is
    # that of an opened attention (tests/models/test_query_key.py).
    assert sizes("head_dim", 2) == [(64, 3 * 12 * 769), (3072, 769)] * 2


def test_features_of_query_and_key_alone_have_the_size_of_the_paper() -> None:
    """Where the code leaves both widths open: 2 * heads * (hidden + 1)."""
    case = CASES["features_of_keys_and_of_values"]
    parameters = dict(case.build().named_parameters())
    group = case.units().by_name()["q"]
    size = sum(parameters[s.tensor][0].numel() * s.index.shape[1] for s in group.zig)
    assert size == 2 * 3 * (12 + 1)


def tiny_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model: nn.Module = VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=3)
    nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr, arg-type]
    return model


def tiny_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer([2, 2], 12, [1, 1], [2, 2], [2, 2], num_classes=3)


@pytest.mark.parametrize(
    ("build", "units"), [(tiny_vit, 2 * 24), (tiny_swin, 48 + 96)], ids=["vit", "swin"]
)
def test_torchvision(build: Callable[[], nn.Module], units: int) -> None:
    """Their attention takes sizes from code: inner features of the MLPs go."""
    picture = {"x": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    if build is tiny_vit:
        traced = trace_units(build(), picture)
        check(build, picture, traced, 0.5)
    else:
        traced = trace_units(build(), (picture["x"],))
        plan = random_plan(traced, 0.5, torch.Generator().manual_seed(0))
        assert_laws(build, (picture["x"],), traced, plan)
    assert sum(g.size for g in traced.prunable) == units
