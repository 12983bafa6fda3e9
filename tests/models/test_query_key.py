"""OTO v1's unit of attention: one feature of all heads' queries and keys, values untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from methods.dhspg import DHSPGConfig
from methods.hesso import HESSOConfig
from methods.hspg import HSPGConfig
from models._blocks.attention import OpenSelfAttention
from models._slim import load_slim, save_slim
from models.bert import encoder_qa
from pipeline.api import zero_channels
from pipeline.data.info import DatasetInfo
from pipeline.files import DamagedFileError
from pipeline.measure.count import MacsModel
from pipeline.registry import build_model, method_spec
from pipeline.selection.saliency import group_norm
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from pipeline.training.phases import Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.task import TASKS
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, randomise_bn
from tests.squad_world import TINY, windows

INFO = DatasetInfo("squad", (3, 32), 2)


SPEC = NetworkSpec("bert", "encoder_qa", {**TINY, "attention": "query_key"}, INFO)


HEADS, WIDTH, FFN = TINY["heads"], TINY["hidden"] // TINY["heads"], TINY["intermediate"]


ATTENTION = "bert.encoder.layer.0.attention.self"


IMPLEMENTATIONS = ["sdpa", "eager"]


def tiny(
    implementation: str = "sdpa", attention: str = "query_key", loud: float = 20.0
) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("bert", "encoder_qa", INFO, {**TINY, "attention": attention})
    model.bert.set_attn_implementation(implementation)
    with torch.no_grad():  # scores that tell positions apart, and scales
        for name, parameter in model.named_parameters():
            parameter.mul_(loud if "layer" in name and parameter.ndim == 2 else 1.0)
    return model.eval()


def plan_of(units: Units, gone: Callable[[str], list[int]]) -> PruningPlan:
    keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in units.prunable}
    for name, mask in keep.items():
        mask[gone(name)] = False
    return PruningPlan(Granularity.STRUCTURED, keep)


def cut(gone: Callable[[str], list[int]]) -> tuple[nn.Module, nn.Module]:
    """The masked and the shrunk network, norms and biases random."""
    masked, shrunk = (randomise_bn(tiny(), torch.Generator().manual_seed(1)) for _ in range(2))
    units = SPEC.units(masked)
    enforce(plan_of(units, gone), masked, units)
    shrink(plan_of(units, gone), shrunk, units)
    return masked.eval(), shrunk.eval()


def test_bert_base_has_the_units_of_the_authors_program() -> None:
    """Spec of v1: 64 features of 2 * 12 * 769 = 18,456 and 3,072 rows of 769 in each of 12 layers;
    14,174,208 and 28,348,416 parameters; frozen 23,837,184; the rest 43,123,970."""
    with torch.device("meta"):
        network = encoder_qa(INFO, pooler=True, freeze_embeddings=True, attention="query_key")
    inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    units = trace_units(network.encoder, inputs, ("pooler",), "query_key")
    parameters = dict(network.encoder.named_parameters())
    sizes = [
        (g.size, sum(parameters[s.tensor][0].numel() * s.index.shape[1] for s in g.zig))
        for g in units.prunable
    ]
    assert sizes == [(64, 18_456), (3072, 769)] * 12
    assert sum(n for n, _ in sizes) == 768 + 36_864
    assert sum(n * k for n, k in sizes[::2]) == 14_174_208
    assert sum(n * k for n, k in sizes[1::2]) == 28_348_416
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    everything = sum(p.numel() for p in network.parameters())
    assert frozen == 23_837_184
    assert everything - frozen - 14_174_208 - 28_348_416 == 43_123_970


def test_a_unit_is_one_feature_of_all_heads_and_no_value_is_in_it() -> None:
    units = SPEC.units(tiny())
    assert [g.size for g in units.prunable] == [WIDTH, FFN] * 2
    group = units.by_name()[f"{ATTENTION}.query"]
    assert {(s.tensor.removeprefix(f"{ATTENTION}."), s.dim, s.role) for s in group.slices} == {
        (f"{layer}.{tensor}", 0, "producer")
        for layer in ("query", "key")
        for tensor in ("weight", "bias")
    }
    for piece in group.slices:
        assert piece.index.tolist() == [[h * WIDTH + j for h in range(HEADS)] for j in range(WIDTH)]
    assert "values are left whole" in units.by_name()[f"{ATTENTION}.value"].reason
    assert units.attributes == ()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_opening_changes_no_output_and_no_key(implementation: str) -> None:
    ours, theirs = tiny(implementation), tiny(implementation, attention="heads")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(outputs(ours, windows()), outputs(theirs, windows()), strict=True):
        assert torch.equal(a, b)
    ours.train(), theirs.train()
    torch.manual_seed(3)
    with_dropout = ours(windows())
    torch.manual_seed(3)
    assert torch.equal(with_dropout, theirs(windows()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_laws(implementation: str, fraction: float) -> None:
    units = SPEC.units(tiny(implementation))
    plan = random_plan(units, fraction, torch.Generator().manual_seed(3))
    for dtype in (torch.float64, torch.float32):
        slim = assert_laws(lambda: tiny(implementation), windows(), units, plan, dtype)
    left = WIDTH - min(round(fraction * WIDTH), WIDTH - 1)
    layer = slim.get_submodule(ATTENTION)
    assert (layer.query.out_features, layer.key.out_features) == (HEADS * left, HEADS * left)
    assert (layer.value.out_features, layer.num_attention_heads) == (HEADS * WIDTH, HEADS)
    assert slim.bert.encoder.layer[0].attention.output.dense.in_features == HEADS * WIDTH
    assert layer.attention_head_size == WIDTH
    assert (layer.query_key_size, layer.scaling) == (left, WIDTH**-0.5)


def test_the_scale_of_the_scores_is_that_of_the_dense_heads() -> None:
    """With the scale of the heads that are left, 1/sqrt(1) for 1/sqrt(4), the law does not hold."""
    masked, shrunk = cut(lambda name: [0, 2, 3] if "query" in name else [])
    want = outputs(masked, windows())
    torch.testing.assert_close(outputs(shrunk, windows()), want, atol=1e-6, rtol=1e-5)
    for layer in shrunk.bert.encoder.layer:
        layer.attention.self.scaling = layer.attention.self.query_key_size**-0.5
    assert not torch.allclose(outputs(shrunk, windows())[0], want[0], atol=1e-2)


def test_a_layer_without_queries_and_keys_looks_everywhere_alike(tmp_path: Path) -> None:
    masked, shrunk = cut(lambda name: list(range(WIDTH)) if name == f"{ATTENTION}.query" else [])
    want = outputs(masked, windows())
    torch.testing.assert_close(outputs(shrunk, windows()), want, atol=1e-6, rtol=1e-5)
    assert shrunk.get_submodule(ATTENTION).query_key_size == 0
    assert not list(shrunk.get_submodule(f"{ATTENTION}.query").parameters())
    save_slim(shrunk, tmp_path)
    again = load_slim(tmp_path)
    assert torch.equal(outputs(again, windows())[0], outputs(shrunk, windows())[0])


def test_parameters_and_macs_of_a_plan_are_those_of_the_shrunk_network() -> None:
    model, example = tiny(), SPEC.example(1)
    units = SPEC.units(model)
    plan = plan_of(units, lambda name: [1, 3] if "query" in name else [5])
    costs = MacsModel(model, example, units)
    dense = count_network(SPEC, model)
    shrink(plan, model, units)
    found = count_network(SPEC, model)
    assert costs.macs(plan) == found.macs
    hidden, length = TINY["hidden"], 32
    fewer = 2 * 2 * HEADS * 2 * (hidden + 1) + 2 * (hidden + 1 + hidden)
    assert dense.params - found.params == fewer
    features = 2 * HEADS * 2 * hidden + HEADS * 2 * length  # two layers' rows, and their scores
    assert dense.macs - found.macs == 2 * length * (features + 2 * hidden)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_slim_folder_says_how_wide_queries_and_keys_are(
    tmp_path: Path, implementation: str
) -> None:
    shrunk = cut(lambda name: [0, 3] if name == f"{ATTENTION}.query" else [])[1]
    shrunk.bert.set_attn_implementation(implementation)
    save_slim(shrunk, tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())["espalier"]
    other = ATTENTION.replace("layer.0", "layer.1")
    assert ours["query_key"] == {ATTENTION: 2, other: WIDTH}
    assert ours["layers"][f"{ATTENTION}.query"] == [2 * HEADS, TINY["hidden"]]
    again = load_slim(tmp_path)
    assert count_network(SPEC, again) == count_network(SPEC, shrunk)
    again.bert.set_attn_implementation(implementation)
    assert torch.equal(outputs(again, windows())[0], outputs(shrunk, windows())[0])


def test_a_folder_with_other_sizes_is_refused(tmp_path: Path) -> None:
    save_slim(cut(lambda name: [0] if "query" in name else [])[1], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["espalier"]["query_key"][ATTENTION] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFileError, match="query_key: not the sizes of the layers"):
        load_slim(tmp_path)


def test_dense_folders_of_other_units_have_no_such_sizes(tmp_path: Path) -> None:
    save_slim(tiny(attention="heads"), tmp_path)
    assert "query_key" not in json.loads((tmp_path / "config.json").read_text())["espalier"]
    assert not any(isinstance(m, OpenSelfAttention) for m in load_slim(tmp_path).modules())


RECIPE = Recipe.model_validate(
    {"epochs": 2, "optimizer": {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}}
)


METHODS = {
    "hspg": HSPGConfig(penalty=0.5, upper_group_sparsity=0.75, warmup_epochs=0),
    "dhspg": DHSPGConfig(target_group_sparsity=0.5, penalty=10.0, epsilon=0.9, start_fraction=0.0),
    "hesso": HESSOConfig(
        target_group_sparsity=0.9, start_fraction=0.0, pruning_fraction=0.5, periods=2
    ),
}


def trained(name: str) -> tuple[nn.Module, Units]:
    """Twelve steps of a method on a few windows."""
    model = tiny(loud=1.0)
    units = SPEC.units(model)
    method = method_spec(name).build(METHODS[name])
    (phase, *_) = method.phases(RECIPE)
    method.prepare(model, units)
    optimizer = method.optimizer(model, phase, RECIPE)
    batch = windows(), torch.tensor([[9, 10], [12, 12], [10, 15]])
    for step in range(12):
        optimizer.zero_grad()
        at = StepContext(phase, step, step, steps_per_epoch=6)
        TASKS["question_answering"]().loss(model, batch)[0].backward()
        method.after_backward(model, at)
        optimizer.step()
        method.after_step(model, at)
    assert isinstance(phase, Phase)
    return model.eval(), units


@pytest.mark.parametrize("name", METHODS)
def test_methods_bring_features_of_queries_and_keys_to_zero(name: str) -> None:
    model, units = trained(name)
    plan = zero_channels(model, units)
    queries = [mask for group, mask in plan.keep.items() if "query" in group]
    assert any(not mask.all() for mask in queries)
    want = outputs(model, windows())
    shrink(plan, model, units)
    torch.testing.assert_close(outputs(model, windows()), want, atol=1e-6, rtol=1e-5)


def test_magnitude_ranks_them_with_the_rest() -> None:
    model = tiny(loud=1.0)
    units = SPEC.units(model)
    with torch.no_grad():
        for row in range(1, HEADS * WIDTH, WIDTH):
            for layer in ("query", "key"):
                model.get_submodule(f"{ATTENTION}.{layer}").weight[row] *= 1e-3
                model.get_submodule(f"{ATTENTION}.{layer}").bias[row] = 0.0
    target = Target.model_validate({"rule": "fraction", "value": 0.02})
    plan = select(group_norm(model, units), Granularity.STRUCTURED, target)
    assert plan.keep[f"{ATTENTION}.query"].tolist() == [True, False, True, True]


def test_a_pruned_network_is_exported() -> None:
    """As it goes to MLflow and ONNX: one graph, any number of windows."""
    slim = cut(lambda name: [0, 1, 2] if "query" in name else [4])[1]
    batch = torch.export.Dim("batch", min=2, max=64)
    made = torch.export.export(slim, (windows(),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(made(windows(5)), slim(windows(5)), atol=1e-6, rtol=1e-5)


def test_other_words_and_a_cache_of_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="attention: 'features' .*query_key"):
        tiny(attention="features")
    layer = tiny().get_submodule(ATTENTION)
    with pytest.raises(ValueError, match="there is no cache of keys"):
        layer(torch.zeros(1, 3, 16), past_key_values=object())
