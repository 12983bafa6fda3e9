"""BERT networks from and to folders: slim ones, pretrained ones, any encoder by its config."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models._slim import load_slim, save_slim
from pipeline.files import DamagedFileError, file_sha256
from pipeline.registry import build_model
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from pipeline.training.weights import load_weights, located
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.models.tiny_bert import INFO, all_inner, half, pruned, spec, tiny
from tests.squad_world import windows


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


def test_a_pruned_encoder_says_that_its_config_cannot_describe_it(tmp_path):
    """Today's transformers would write a folder that `from_pretrained` cannot load."""
    from transformers import BertConfig, BertForQuestionAnswering

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=8,
    )  # fmt: skip
    model = BertForQuestionAnswering(config).eval()
    units = trace_units(model, {"input_ids": torch.arange(8)[None]})
    whole = {g.name: torch.ones(g.size, dtype=torch.bool) for g in units.prunable}
    shrink(PruningPlan(Granularity.STRUCTURED, whole), model, units)
    model.save_pretrained(tmp_path / "whole")  # nothing was cut

    half = {name: torch.arange(len(mask)) % 2 == 0 for name, mask in whole.items()}
    shrink(PruningPlan(Granularity.STRUCTURED, half), model, units)
    for module in (model, model.bert, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"was pruned.*save_pruned.*docs/api\.md"):
            module.save_pretrained(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
