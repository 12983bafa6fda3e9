"""A tiny encoder on a tiny SQuAD through every stage: records, counts, exactness, delivery."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models._slim import load_slim
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.files import file_sha256
from pipeline.measure.count import count
from pipeline.registry import build_model
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import DELIVERED, PrunedArtifact, TrainArtifact
from pipeline.study.records.record import EvalRecord, write_record
from pipeline.training.loop.job import Silent
from stages import evaluate, finetune, prune, train
from tests.squad_world import TINY, windows, write_squad, write_tokenizer

PARAMS = """
study: tiny-squad
root: {root}
data:
  name: squad_reconstructed
  root: raw
  squad: {{tokenizer: tokenizer, max_length: 32, stride: 8, query_length: 8}}
train:
  epochs: 2
  batch_size: 16
  optimizer: {{name: adamw, lr: 3.0e-3}}
  schedule: {{name: linear, warmup_fraction: 0.1}}
  clip_norm: 1.0
  accumulation: 2
methods:
  dense: {{}}
  hesso: {{target_group_sparsity: 0.5, start_fraction: 0.2, pruning_fraction: 0.3, periods: 2}}
  hspg: {{warmup_epochs: 1, upper_group_sparsity_linear: 0.5, adapt_epsilon_steps: 2}}
  init_pruning: {{criterion: grasp, sparsity: 0.5, ignore: [qa_outputs]}}
trainings:
  dense: &net
    model: {{family: bert, name: encoder_qa, freeze_embeddings: true, {sizes}}}
    method: dense
    weights: {{path: encoder.safetensors, sha256: "{sha}", into: bert}}
  hesso: {{<<: *net, method: hesso}}
  grasp: {{<<: *net, method: init_pruning}}
  hspg:
    <<: *net
    method: hspg
    train: {{optimizer: {{name: sgd, lr: 0.1, momentum: 0.0, weight_decay: 0.0}}}}
prunings:
  dense-params:
    training: dense
    granularity: structured
    saliency: magnitude
    target: {{rule: params, value: 0.3}}
    finetune: {{epochs: 1, deliver: [folder]}}
  dense-weights: {{training: dense, target: {{rule: fraction, value: 0.4}}}}
  hesso-zeros: {{training: hesso, target: {{rule: zeros}}}}
  hspg-zeros: {{training: hspg, target: {{rule: zeros}}}}
  grasp-zeros: {{training: grasp, target: {{rule: zeros}}}}
"""


class Told:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values, **at) -> None:
        self.values |= values

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    """The folder of the study, its params, its prepared data."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_squad(Path("raw"))
        write_tokenizer(Path("tokenizer"))
        root = Path(__file__).resolve().parents[2]
        Path("params.yaml").write_text(text(root, "0" * 64))
        prepare(load_params().file.data, paths.PREPARED)
        prepared = load_prepared(paths.PREPARED)
        torch.manual_seed(3)
        encoder = build_model("bert", "encoder_qa", prepared.info, TINY).bert
        save_file(encoder.state_dict(), "encoder.safetensors")
        Path("params.yaml").write_text(text(root, file_sha256(Path("encoder.safetensors"))))
        yield load_params(), prepared


def text(root: Path, sha: str) -> str:
    sizes = ", ".join(f"{k}: {v}" for k, v in TINY.items())
    return PARAMS.format(root=root, sizes=sizes, sha=sha)


def place(name: str) -> Workplace:
    return Workplace(torch.device("cpu"), Path(".checkpoints") / name)


@pytest.fixture(scope="module")
def trained(study) -> Params:
    params, prepared = study
    for key in params.file.trainings:
        record = train.run(params, key, prepared, place(f"train-{key}"), Silent())
        assert {"data", "weights"} == set(record.parents)
        assert record.data == "squad_reconstructed"
        write_record(paths.record("train", key), record)
    return params


@pytest.fixture(scope="module")
def records(trained: Params, study) -> dict[str, EvalRecord]:
    _, prepared = study
    found = {}
    for key, pruning in trained.file.prunings.items():
        source = TrainArtifact(paths.training(pruning.training))
        prune.run(pruning, source, prepared, PrunedArtifact(paths.prune(key)))
        finetune.run(trained, key, prepared, place(f"finetune-{key}"), Silent())
        found[key] = evaluate.run(trained, key, prepared, place("evaluate"))
    return found


def test_scores_are_those_of_squad(records):
    for record in records.values():
        assert set(record.final) == {"loss", "exact_match", "f1"}
        assert record.input_shape == (3, 32)


def test_surgery_is_exact_and_zeros_change_nothing(records):
    for key in ("dense-params", "hesso-zeros", "hspg-zeros"):
        exactness = records[key].exactness
        assert exactness.masked.max_rel < 1e-5, key
        assert (exactness.dense is None) == (key == "dense-params")
        if exactness.dense is not None:
            assert exactness.dense.max_rel < 1e-5, key
            assert records[key].pruned == pytest.approx(records[key].dense, abs=1e-4)
    assert records["dense-weights"].exactness is None
    assert records["grasp-zeros"].weight_sparsity == pytest.approx(0.5, abs=0.02)


def test_targets_and_counts_leave_the_embeddings_out(records):
    params = records["dense-params"].counts
    whole = build_model("bert", "encoder_qa", load_prepared(paths.PREPARED).info, TINY)
    outside = sum(p.numel() for n, p in whole.named_parameters() if "embeddings" in n)
    assert params.params_dense == sum(p.numel() for p in whole.parameters()) - outside
    assert 0.6 < params.params_kept / params.params_dense <= 0.7
    hesso = records["hesso-zeros"]
    assert hesso.group_sparsity == pytest.approx(0.5, abs=0.05)
    assert hesso.counts.macs_kept < hesso.counts.macs_dense


def test_delivered_folders_hold_the_same_network(records):
    for key in records:
        artifact = PrunedArtifact(paths.finetune(key))
        model, loaded = artifact.model().eval(), load_slim(artifact.folder / DELIVERED)
        with torch.no_grad():
            assert torch.equal(loaded(windows()), model(windows())), key
        example = artifact.network.example()
        assert count(loaded, example) == count(model, example)


def test_evaluate_tracks_how_exact_the_delivery_is(records, trained):
    told = Told()
    spec = PrunedArtifact(paths.finetune("dense-params")).spec
    assert spec["deliver"] == {"folder": 0.0}
    assert "deliver" not in PrunedArtifact(paths.finetune("hesso-zeros")).spec
    settings = trained.file.evaluate.model_copy(update={"latency_repeats": 3})
    evaluate.clock("hesso-zeros", settings, place("evaluate"), told)
    assert told.values["exact/delivered_max_abs"] == 0.0
    assert told.values["latency/batch1_ms"] > 0.0


def test_embeddings_are_as_they_came(trained):
    state = TrainArtifact(paths.training("hspg")).weights("final")
    init = TrainArtifact(paths.training("hspg")).weights("init")
    assert all(torch.equal(init[n], v) for n, v in state.items() if "embeddings" in n)
    assert any(not torch.equal(init[n], v) for n, v in state.items())
