"""Encoders with a span head: counts, units, exact surgery."""

from __future__ import annotations

import pytest
import torch

from models._slim import load_slim, save_slim
from pipeline.registry import build_model, model_spec
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from tests.models.tiny_bert import INFO, all_inner, half, pruned, spec, tiny
from tests.squad_world import TINY, windows


def test_bert_base_has_the_published_size():
    """OTO counts the unused pooler, and no embeddings: 85,646,594 of 109,483,778."""
    network = NetworkSpec("bert", "encoder_qa", {"pooler": True}, INFO)
    with torch.device("meta"):
        model = build_model("bert", "encoder_qa", INFO, {"pooler": True})
    assert sum(p.numel() for p in model.parameters()) == 109_483_778
    outside = sum(p.numel() for n, p in model.named_parameters() if "embeddings" in n)
    assert sum(p.numel() for p in model.parameters()) - outside == 85_646_594
    assert network.registered.uncounted == ("embeddings",)


def test_parameters_and_macs_are_counted_without_embeddings():
    model, (hidden, inner, length) = tiny(), (16, 24, 32)
    found = count_network(spec(), model)
    layer = 4 * hidden * (hidden + 1) + inner * (hidden + 1) + hidden * (inner + 1) + 4 * hidden
    assert found.params == 2 * layer + 2 * hidden + 2
    products = 4 * hidden**2 + 2 * hidden * inner + 2 * length * hidden  # scores and their sums
    assert found.macs == length * (2 * products + 2 * hidden)


def test_outputs_are_start_and_end_logits_and_padding_is_not_looked_at():
    model, inputs = tiny(), windows(3, 32)
    with torch.no_grad():
        found = model(inputs)
        assert found.shape == (3, 2, 32)
        other = inputs.clone()
        other[-1, 0, -10:] = 7
        assert torch.allclose(model(other)[-1, :, :22], found[-1, :, :22], atol=1e-6)
        inputs[0, 2] = 1 - inputs[0, 2]
        assert not torch.allclose(model(inputs)[0], found[0], atol=1e-4)


def test_keys_are_those_of_transformers():
    from transformers import BertConfig, BertForQuestionAnswering

    theirs = BertForQuestionAnswering(
        BertConfig(
            vocab_size=TINY["vocab"],
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=40,
        )
    ).eval()
    ours = tiny()
    ours.load_state_dict(theirs.state_dict())
    ids, mask, types = windows().unbind(1)
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types)
        found = ours(windows())
    torch.testing.assert_close(found, torch.stack([logits.start_logits, logits.end_logits], 1))


@pytest.mark.parametrize("pooler", [False, True])
def test_every_layer_offers_its_inner_features_and_the_head_stays(pooler):
    model = tiny(pooler=pooler)
    units = spec(pooler=pooler).units(model)
    inner = [g for g in units.prunable if "intermediate" in g.name]
    assert [g.size for g in inner] == [24, 24]
    for group in inner:
        assert {(s.tensor.rpartition("layer.")[2][2:], s.role) for s in group.slices} == {
            ("intermediate.dense.weight", "producer"),
            ("intermediate.dense.bias", "producer"),
            ("output.dense.weight", "consumer"),
        }
    named = {s.tensor for g in units.prunable for s in g.slices}
    for other in ("qa_outputs", "embeddings", "pooler"):
        assert not any(other in name for name in named)


@pytest.mark.parametrize("plan", [half, all_inner])
def test_surgery_is_exact(plan):
    masked, shrunk = pruned(plan)
    with torch.no_grad():
        torch.testing.assert_close(shrunk(windows()), masked(windows()), atol=1e-6, rtol=1e-5)
    assert count_network(spec(), shrunk).params < count_network(spec(), masked).params


@pytest.mark.parametrize(("attention", "sizes"), [("head_dim", [4, 24]), ("none", [24])])
def test_other_units_of_attention(tmp_path, attention, sizes):
    """Of 4 heads of 4 features, one feature of all heads; cut exactly, and loaded again."""
    units = spec(attention=attention).units(tiny(attention=attention))
    assert [g.size for g in units.prunable] == 2 * sizes
    masked, shrunk = pruned(attention=attention)
    with torch.no_grad():
        torch.testing.assert_close(shrunk(windows()), masked(windows()), atol=1e-6, rtol=1e-5)
    assert shrunk.bert.encoder.layer[0].attention.self.num_attention_heads == 4
    save_slim(shrunk, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_slim(tmp_path)(windows()), shrunk(windows()))


def test_frozen_embeddings_and_nothing_else():
    frozen = {n for n, p in tiny(freeze_embeddings=True).named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in tiny().named_parameters() if "embeddings" in n}
    assert all(p.requires_grad for p in tiny().parameters())


def test_example_is_full_windows_of_token_ids():
    found = spec().example(4)
    assert found.shape == (4, 3, 32)
    assert found.dtype == torch.int64
    assert bool(found[:, 1].all())
    assert model_spec("bert", "encoder_qa").task == "question_answering"
