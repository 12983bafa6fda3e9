"""The early-stop iteration is in the record, and its test accuracy is measured by `evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.files import read_json
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import load_params
from pipeline.study.records.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.records.cost import examples_until
from pipeline.study.records.record import (
    EvalRecord,
    TrainRecord,
    from_json,
    read_record,
    to_json,
    write_record,
)
from pipeline.study.tracking.record_views import evaluate_view, train_view
from pipeline.training.loop.job import Silent
from stages import evaluate, finetune, prune, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = f"""
study: t
root: {ROOT}
data: {{name: digits, val_size: 100, limit: 170}}
train:
  epochs: 3
  steps: 11
  evaluate_steps: 2
  batch_size: 50
  optimizer: {{name: adam, lr: 0.01, weight_decay: 0, fused: true}}
  schedule: {{name: constant}}
evaluate: {{batch_size: 400}}
methods: {{imp: {{rounds: 1, rewind: init, layers: all}}}}
trainings:
  a: {{model: {{family: small, name: resnet8, width: 4}}, method: imp}}
prunings:
  stopped: {{training: a, at: early-stop-round-1, target: {{rule: zeros}}}}
  last: {{training: a, at: round-1, target: {{rule: zeros}}}}
  ended: {{training: a, at: round-1, target: {{rule: zeros}}, finetune: {{epochs: 1}}}}
  again:
    training: a
    at: round-1
    target: {{rule: zeros}}
    finetune: {{epochs: 3, start_from: random, train: {{steps: 11, evaluate_steps: 2}}}}
"""


def test_the_early_stop_iteration_and_its_test_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    prepare(DataConfig(name="digits", val_size=100, limit=170), paths.PREPARED)
    params, prepared = load_params(), load_prepared(paths.PREPARED)
    place = Workplace(torch.device("cpu"), paths.checkpoints("train", "a"))
    write_record(paths.record("train", "a"), train.run(params, "a", prepared, place, Silent()))
    record = read_record(TrainRecord, paths.record("train", "a"))
    rows = read_json(paths.training("a") / "evaluations.json")
    assert [point.step for point in record.curve] == [4, 8, 11, 15, 19, 22]
    best = min(rows[5:], key=lambda row: row["validation"]["loss"])
    state = record.kept["early-stop-round-1"]
    assert (state.phase_step, state.step) == (best["phase_step"], 11 + best["phase_step"])
    assert train_view(record).summary()["kept/early-stop-round-1/iteration"] == state.phase_step
    exact = {2: 100, 4: 170, 6: 270, 8: 340, 10: 440}  # the fourth batch of an epoch has 20 images
    whole = record.curve[2].values["examples"]
    assert examples_until(record, "early-stop-round-1") == whole + exact[state.phase_step]
    found = {}
    for key in ("stopped", "last", "ended", "again"):
        source = TrainArtifact(paths.training("a"))
        prune.run(params.pruning(key), source, prepared, PrunedArtifact(paths.prune(key)))
        own = Workplace(torch.device("cpu"), paths.checkpoints("finetune", key))
        finetune.run(params, key, prepared, own, Silent())
        found[key] = evaluate.run(params, key, prepared, own)
    assert found["stopped"].dense == found["stopped"].pruned, "zeros were removed, nothing else"
    assert found["stopped"].weight_sparsity == pytest.approx(0.2, abs=0.02)
    assert not {"steps", "evaluate_steps"} & found["ended"].finetune.keys()
    assert found["ended"].early_stop is None, "its retraining looked for none"
    last = found["last"].early_stop
    assert (last.iteration, last.validation) == (state.phase_step, state.validation)
    assert last.test == found["stopped"].final
    assert found["last"].final != last.test
    again = found["again"]
    early, last = again.early_stop, again.finetune_curve[-1]
    assert again.finetune["steps"] == last.step == 11
    assert early.iteration in (2, 4, 6, 8, 10)
    assert early.test.keys() == again.final.keys()
    assert early.test != again.final, "the network of the last step, not of the early stop"
    assert from_json(EvalRecord, to_json(again)) == again
    tracked = evaluate_view(again, record).summary()
    assert tracked["early_stop/iteration"] == early.iteration
    assert tracked["early_stop/top1"] == early.test["top1"]
    assert tracked["early_stop_validation/top1"] == early.validation["top1"]
