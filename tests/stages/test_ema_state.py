"""The average of the weights as a state of a training, and as what a retraining delivers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import tensors_sha256
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, ParamsError, load_params
from pipeline.study.records.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.records.record import EvalRecord, TrainRecord, read_record, write_record
from pipeline.study.tracking.record_views import train_view
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.job import Silent
from stages import evaluate, finetune, prune, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """
study: t
root: ROOT
data: {name: digits, val_size: 100, limit: 200}
train: {epochs: 2, batch_size: 50, optimizer: {lr: 0.05}, schedule: {name: constant}}
evaluate: {batch_size: 400}
methods:
  dense: {}
  hspg: {penalty: 0.2, epsilon: 0.9, warmup_fraction: 0.5}
trainings:
  a:
    model: {family: small, name: resnet8, width: 4}
    method: hspg
    train: {ema_decay: 0.8}
  b: {model: {family: small, name: resnet8, width: 4}, method: dense}
prunings:
  average: {training: a, at: ema, target: {rule: fraction, value: 0.4}}
  slim:
    training: b
    granularity: structured
    saliency: magnitude
    target: {rule: macs, value: 0.5}
    finetune: &twice {epochs: 2, train: {ema_decay: 0.8, checkpoint_steps: 1}}
  masked: {training: b, target: {rule: fraction, value: 0.6}, finetune: *twice}
  plain: {training: b, target: {rule: fraction, value: 0.6}, finetune: {epochs: 2}}
  asked: {training: a, target: {rule: zeros}}
""".replace("ROOT", str(ROOT))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Prepared]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    prepare(DataConfig(name="digits", val_size=100, limit=200), paths.PREPARED)
    return load_params(), load_prepared(paths.PREPARED)


def trained(study: tuple[Params, Prepared], key: str) -> TrainRecord:
    params, prepared = study
    place = Workplace(torch.device("cpu"), paths.checkpoints("train", key))
    record = train.run(params, key, prepared, place, Silent())
    write_record(paths.record("train", key), record)
    return read_record(TrainRecord, paths.record("train", key))


def pruned(study: tuple[Params, Prepared], key: str) -> None:
    source = TrainArtifact(paths.training(study[0].pruning(key).training))
    prune.run(study[0].pruning(key), source, study[1], PrunedArtifact(paths.prune(key)))


def retrained(study: tuple[Params, Prepared], key: str) -> EvalRecord:
    params, prepared = study
    place = Workplace(torch.device("cpu"), paths.checkpoints("finetune", key))
    finetune.run(params, key, prepared, place, Silent())
    record = evaluate.run(params, key, prepared, place)
    write_record(paths.record("evaluate", key), record)
    return read_record(EvalRecord, paths.record("evaluate", key))


def test_a_training_keeps_it_beside_its_final_weights(study) -> None:
    record, artifact = trained(study, "a"), TrainArtifact(paths.training("a"))
    assert tensors_sha256(artifact.weights("final")) == record.weights_sha
    assert tensors_sha256(artifact.weights("ema")) != record.weights_sha
    assert artifact.saliency("ema").keys() == artifact.saliency("final").keys()
    last = record.curve[-1].values
    assert record.kept["ema"].epochs == 2
    assert record.kept["ema"].validation == {k: last[f"ema/{k}"] for k in ("loss", "top1")}
    assert train_view(record).summary()["kept/ema/top1"] == last["ema/top1"]
    pruned(study, "average")
    evaluated = retrained(study, "average")
    assert evaluated.at == "ema"
    assert not evaluated.finetuned
    assert "delivered" not in evaluated.finetune
    assert evaluated.dense["loss"] != evaluated.final["loss"]


@pytest.mark.parametrize("key", ["slim", "masked"])
def test_a_retraining_delivers_it_and_says_so(study, key: str) -> None:
    trained(study, "b")
    pruned(study, key)
    record = retrained(study, key)
    assert (record.finetune["ema_decay"], record.finetune["delivered"]) == (0.8, "ema")
    values = record.finetune_curve[-1].values
    assert values["ema/loss"] != values["validation/loss"]
    folder = CheckpointFolder(paths.checkpoints("finetune", key), "", writes=False)
    average = folder.weights("ema", "")
    delivered = PrunedArtifact(paths.finetune(key))
    assert tensors_sha256(delivered.model().state_dict()) == tensors_sha256(average)
    assert tensors_sha256(folder.load()["model"]) != tensors_sha256(average)
    if key == "masked":
        for name, mask in delivered.plan.keep.items():
            assert not average[name][~mask].any()
    else:
        before = PrunedArtifact(paths.prune(key)).model().state_dict()
        assert {k: v.shape for k, v in average.items()} == {k: v.shape for k, v in before.items()}


def test_a_killed_retraining_delivers_the_same(study, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(study, "b")
    pruned(study, "slim")
    wanted = retrained(study, "slim")
    whole = PrunedArtifact(paths.finetune("slim")).weights_sha
    shutil.rmtree(paths.checkpoints("finetune", "slim"))
    saved, calls = CheckpointFolder.save, [0]

    def dies(self: CheckpointFolder, tree: object) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        saved(self, tree)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            retrained(study, "slim")
    assert retrained(study, "slim") == wanted
    assert PrunedArtifact(paths.finetune("slim")).weights_sha == whole


def test_one_that_asks_for_nothing_has_the_record_it_always_had(study) -> None:
    trained(study, "b")
    assert '"ema' not in paths.record("train", "b").read_text()
    states = {p.parent.name for p in paths.training("b").glob("*/model.safetensors")}
    assert states == {"init", "rewind", "final"}
    pruned(study, "plain")
    retrained(study, "plain")
    text = paths.record("evaluate", "plain").read_text()
    assert '"ema' not in text
    assert "delivered" not in text


def refused(text: str, old: str, new: str) -> str:
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ParamsError) as error:
        load_params()
    return str(error.value)


def test_zeros_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training brought to zero is not zero in an average: the row would be a dense network."""
    monkeypatch.chdir(tmp_path)
    said = refused(PARAMS, "asked: {training: a,", "asked: {training: a, at: ema,")
    assert "prunings.asked.target.rule: 'zeros' finds none at: ema" in said
    assert "set at: final, or a rule with a value" in said


def test_a_training_without_an_average_has_no_such_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(PARAMS, "plain: {training: b,", "plain: {training: b, at: ema,")
    assert "prunings.plain.at: 'ema' is no state of it; (known: final, init, rewind)" in said
