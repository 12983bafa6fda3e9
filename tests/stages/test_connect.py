"""The line between two states: exact ends, the middle by hand, scores as the harness gives them;
two children of one ancestor differ by the order of the data alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.data.config import DataConfig
from pipeline.data.loaders import make_eval_batches
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import tensors_sha256, write_json
from pipeline.study import paths
from pipeline.study.execution import running
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, ParamsError, load_params
from pipeline.study.records.artifacts import NetworkSpec, TrainArtifact
from pipeline.study.records.record import write_record
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.method import MethodBase
from stages.connect import between, distance, run
from stages.prune import batches
from tests.reports.samples import train_record

PARAMS = """
study: t
data: {name: digits, val_size: 100, limit: 100}
train: {epochs: 1, batch_size: 50, rewind_epoch: 0}
evaluate: {batch_size: 400}
methods: {dense: {}, imp: {rounds: 2}}
trainings:
  a: {model: {family: small, name: resnet8, width: 4}, method: dense}
  b:
    model: {family: small, name: resnet8, width: 4}
    method: imp
    settings: {rounds: 3}
    train: {data_seed: 7}
prunings:
  a-p: {training: a, saliency: snip, saliency_batches: 2, saliency_batch_size: 32,
        target: {rule: fraction, value: 0.5}}
connect:
  points: 3
  recalibration_batches: 2
  pairs:
    ab: {one: {training: a}, other: {training: b, at: round-3}}
"""


def load(folder: Path, text: str = PARAMS) -> Params:
    (folder / "params.yaml").write_text(text)
    return load_params(folder / "params.yaml")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("data")
    prepare(DataConfig(name="digits", val_size=100, limit=100), folder)
    return load_prepared(folder)


def test_the_ends_are_exact_and_counts_stay() -> None:
    one, other = nn.BatchNorm1d(3).state_dict(), nn.BatchNorm1d(3).state_dict()
    one = {k: v + 1 for k, v in one.items()}
    other = {k: v * 3 + 0.1 if v.is_floating_point() else v + 9 for k, v in other.items()}
    for alpha, end in ((0.0, one), (1.0, other)):
        found = between(one, other, alpha)
        floats = [k for k, v in found.items() if v.is_floating_point()]
        assert all(torch.equal(found[k], end[k]) for k in floats)
    assert int(found["num_batches_tracked"]) == 1
    middle = between(one, other, 0.5)["weight"]
    torch.testing.assert_close(middle, (one["weight"] + other["weight"]) / 2)
    assert distance(one, other, nn.BatchNorm1d(3)) == pytest.approx((3 * (1.1**2 + 0.9**2)) ** 0.5)


def test_scores_along_the_line(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = load(tmp_path)
    network = NetworkSpec.of(params.training("a").model, prepared.info)
    models = {}
    for seed, (key, state) in enumerate((("a", "final"), ("b", "round-3"))):
        torch.manual_seed(seed)
        models[key] = network.build()
        artifact = TrainArtifact(paths.training(key))
        weights = clone_state(models[key])
        for name in {state, "final"}:
            artifact.write_state(name, weights, None)
        spec = {"network": network.to_json(), "training": key, "method": "dense", "seed": 0}
        write_json(artifact.folder / "spec.json", spec)
        told = {"training": key, "seed": 0, "model": f"{network.family}/{network.name}"}
        record = replace(train_record("dense", seed), weights_sha=tensors_sha256(weights), **told)
        write_record(paths.record("train", key), record)
    record = run(params, "ab", prepared, Workplace(torch.device("cpu"), tmp_path))
    test = make_eval_batches(prepared, prepared.test(), batch_size=400)
    task = running.task_of(network)
    mean = network.build()
    mean.load_state_dict(between(*(m.state_dict() for m in models.values()), 0.5))
    plain = [p.scores for p in record.points if not p.recalibrated]
    assert plain == [task.scores(m, test) for m in (models["a"], mean, models["b"])]
    assert [p.alpha for p in record.points] == [0.0, 0.5, 1.0] * 2
    assert record.line("loss", True) != record.line("loss", False)
    assert record.distance == pytest.approx(
        distance(models["a"].state_dict(), models["b"].state_dict(), mean)
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("at: round-3", "at: round-4", "connect.pairs.ab.other.at: 'round-4' is no state of it"),
        ("{training: b,", "{training: c,", "connect.pairs.ab.other.training: 'c' is no training"),
        ("other: {training: b, at: round-3}", "other: {training: a}", "are the same state"),
        ("width: 4}\n    method", "width: 8}\n    method", "a line needs one network"),
        ("settings: {rounds", "settings: {round", "trainings.b.settings.round: unknown key"),
        ("saliency: snip", "saliency: fpgm", "'fpgm' does not rank unstructured units"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in PARAMS
    with pytest.raises(ParamsError, match=says):
        load(tmp_path, PARAMS.replace(old, new))


def test_settings_are_of_one_training(tmp_path: Path) -> None:
    params = load(tmp_path)
    assert params.method_config("b").rounds == 3  # type: ignore[attr-defined]
    assert params.methods["imp"].rounds == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("key", "seed"), [("a", 5), ("b", 7)])
def test_data_seed_orders_the_batches(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, key: str, seed: int
) -> None:
    """With the same seed otherwise, so with the same initial weights and the same jobs."""
    jobs: list[Any] = []
    monkeypatch.setattr(running, "fit", lambda job, *_: jobs.append(job) or [])
    params = load(tmp_path)
    network = NetworkSpec.of(params.training(key).model, prepared.info)
    model = network.build()
    work = running.Assignment(
        network, model, network.units(model), MethodBase(), params.recipe(key), 5
    )
    place = Workplace(torch.device("cpu"), tmp_path)
    folder = CheckpointFolder(tmp_path / "c", "f")
    running.train_network(work, prepared, place, folder, Silent())
    assert jobs[0].seed == 5
    got = next(jobs[0].train.epoch(0))
    want = next(running.make_train_batches(prepared, batch_size=50, seed=seed).epoch(0))
    assert torch.equal(got[0], want[0])
    stems = [jobs[0].fresh(phase)["conv1.weight"] for phase in (1, 2, 1)]
    assert torch.equal(stems[0], stems[2])
    assert not torch.equal(stems[0], stems[1])  # a control draws new weights every round


class Silent:
    def metrics(self, values: Any, *, epoch: int, step: int) -> None: ...
    def offset(self) -> int:
        return 0

    def begin(self, offset: int = 0) -> None: ...


def test_prune_looks_at_training_batches_only_when_asked(
    tmp_path: Path, prepared: Prepared
) -> None:
    pruning = load(tmp_path).pruning("a-p")
    assert [len(labels) for _, labels in batches(pruning, prepared, 0)] == [32, 32]
    assert batches(pruning.model_copy(update={"saliency": "magnitude"}), prepared, 0) == []
    assert pruning.ranking == "snip on 2 batches of 32"
