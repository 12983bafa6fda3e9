"""Encoders with a span head: counts, units, exact surgery, weights of others, the slim folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models._slim import load_slim, save_slim
from pipeline.data.info import DatasetInfo
from pipeline.files import DamagedFileError, file_sha256
from pipeline.registry import build_model, model_spec
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from pipeline.training.weights import load_weights, located
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from tests.squad_world import TINY, windows

INFO = DatasetInfo("squad", (3, 32), 2)


def tiny(**args) -> nn.Module:
    torch.manual_seed(0)
    return build_model("bert", "encoder_qa", INFO, {**TINY, **args}).eval()


def spec(**args) -> NetworkSpec:
    return NetworkSpec("bert", "encoder_qa", {**TINY, **args}, INFO)


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


def half(units, seed: int = 0) -> PruningPlan:
    """Every second unit, at random; the first stays."""
    generator = torch.Generator().manual_seed(seed)
    keep = {g.name: torch.rand(g.size, generator=generator) < 0.5 for g in units.prunable}
    for mask in keep.values():
        mask[0] = True
    return PruningPlan(Granularity.STRUCTURED, keep)


def pruned(plan_of=half, **args) -> tuple[nn.Module, nn.Module]:
    """The masked and the shrunk network."""
    masked, shrunk = tiny(**args), tiny(**args)
    units = spec(**args).units(masked)
    plan = plan_of(units)
    enforce(plan, masked, units)
    shrink(plan, shrunk, units)
    return masked, shrunk.eval()


def all_inner(units) -> PruningPlan:
    """The first layer loses its whole inner part."""
    (first, *_) = [g for g in units.prunable if "intermediate" in g.name]
    gone = torch.zeros(first.size, dtype=torch.bool)
    return PruningPlan(Granularity.STRUCTURED, {first.name: gone})


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


@pytest.mark.parametrize("plan", [None, half, all_inner])
@pytest.mark.parametrize("pooler", [False, True])
def test_a_slim_folder_gives_the_same_outputs(tmp_path, plan, pooler):
    model = tiny(pooler=pooler) if plan is None else pruned(plan, pooler=pooler)[1]
    save_slim(model, tmp_path)
    again = load_slim(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(windows()), model(windows()))
    assert count_network(spec(pooler=pooler), again) == count_network(spec(pooler=pooler), model)
    config = json.loads((tmp_path / "config.json").read_text())
    sizes = {n: list(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert config["espalier"]["layers"] == sizes
    assert config["architectures"] == ["BertForQuestionAnswering"]


def test_numbers_that_surgery_changed_are_in_the_folder(tmp_path):
    model = tiny()
    attention = model.bert.encoder.layer[1].attention.self
    attention.num_attention_heads, attention.scaling = 3, 0.25
    save_slim(model, tmp_path)
    again = load_slim(tmp_path).bert.encoder
    assert [m.attention.self.num_attention_heads for m in again.layer] == [4, 3]
    assert [m.attention.self.scaling for m in again.layer] == [0.5, 0.25]


def test_transformers_itself_loads_what_was_not_pruned(tmp_path):
    from transformers import AutoModelForQuestionAnswering

    model = tiny()
    save_slim(model, tmp_path)
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    ids, mask, types = windows().unbind(1)
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).start_logits
        torch.testing.assert_close(logits, model(windows())[:, 0])


def test_a_damaged_folder_is_refused_by_name(tmp_path):
    save_slim(pruned()[1], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["espalier"]["layers"]["bert.encoder.layer.0.intermediate.dense"][0] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match=tmp_path.name):
        load_slim(tmp_path)
    del config["espalier"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match="espalier"):
        load_slim(tmp_path)


def bare_encoder(path: Path, old_names: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint of an encoder of three layers with a pooler, as on the hub."""
    model = tiny(layers=3, pooler=True)
    state = {k.removeprefix("bert."): v for k, v in model.state_dict().items()}
    state = {k: torch.randn_like(v) for k, v in state.items() if "qa_outputs" not in k}
    if old_names:
        renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        file = {
            f"bert.{k}".replace(a, b): v
            for k, v in state.items()
            for a, b in [next((p for p in renamed.items() if k.endswith(p[0])), ("", ""))]
        }
        file["cls.predictions.bias"] = torch.zeros(3)
        save_file(file, path)
    else:
        save_file(state, path)
    return state


@pytest.mark.parametrize("old_names", [False, True])
def test_pretrained_weights_enter_the_encoder(tmp_path, old_names):
    path = tmp_path / "model.safetensors"
    state = bare_encoder(path, old_names)
    model = tiny()
    head = model.qa_outputs.weight.clone()
    prefix = "bert." if old_names else ""
    load_weights(model, path, file_sha256(path), prefix, into="bert")
    for name, value in model.bert.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(model.qa_outputs.weight, head)


def test_pretrained_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    bare_encoder(path)
    digest = file_sha256(path)
    with pytest.raises(ValueError, match=r"encoder.layer.3"):
        load_weights(tiny(layers=4), path, digest, into="bert")
    with pytest.raises(ValueError, match=r"no module 'roberta' \(known: bert, qa_outputs\)"):
        load_weights(tiny(), path, digest, into="roberta")
    with pytest.raises(DamagedFileError, match="sha256"):
        load_weights(tiny(), path, "0" * 64, into="bert")


def test_hub_files_are_fetched_by_repository_and_name(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or str(tmp_path)
    )
    assert located("hf://google-bert/bert-base-uncased/model.safetensors") == tmp_path
    assert asked == [("google-bert/bert-base-uncased", "model.safetensors")]
    assert located("data/model.safetensors") == Path("data/model.safetensors")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "roberta"])
def test_any_encoder_by_its_config(tmp_path, kind):
    from transformers import AutoConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 24, "vocab_size": 60, "max_position_embeddings": 40}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, "vocab_size": 60}
    if kind == "roberta":
        sizes["type_vocab_size"] = 1  # as roberta-base: its token types are all 0
    if kind == "electra":
        sizes["embedding_size"] = 16
    AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path)
    network = NetworkSpec("bert", "auto_qa", {"config": str(tmp_path), "layers": 2}, INFO)
    model = network.build().eval()
    inputs = windows()
    with torch.no_grad():
        assert model(inputs).shape == (3, 2, 32)
    units = network.units(model)
    assert len([g for g in units.prunable if g.size == 24]) == 2
    shrink(half(units), model, units)
    save_slim(model, tmp_path / "slim")
    with torch.no_grad():
        assert torch.equal(load_slim(tmp_path / "slim")(inputs), model(inputs))


def test_a_folder_without_config_and_windows_too_long_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"model.config: .*{tmp_path.name}"):
        build_model("bert", "auto_qa", INFO, {"config": str(tmp_path)})
    with pytest.raises(ValueError, match="windows of 32 tokens .*, 16 positions"):
        tiny(positions=16)


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
