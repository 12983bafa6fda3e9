"""A training keeps the states it was asked to keep, and a pruning starts from any of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import read_json, tensors_sha256
from pipeline.registry import method_spec
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.records.record import TrainRecord, read_record, write_record
from pipeline.study.tracking.record_views import train_view
from pipeline.training.loop.checkpoint import CheckpointFolder, Lineage, retire
from pipeline.training.loop.job import SECONDS, Silent
from stages import evaluate, finetune, prune, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = f"""
study: t
root: {ROOT}
data: {{name: digits, val_size: 100, limit: 200}}
train: {{epochs: 3, batch_size: 50, optimizer: {{lr: 0.05}}, schedule: {{name: constant}}}}
evaluate: {{batch_size: 400}}
methods:
  slimming: {{}}
  imp: {{}}
  early_bird: {{ratios: [0.3, 0.4], ratio: 0.4, length: 2, epsilon: 1.0, stop: false}}
trainings:
  a:
    model: {{family: small, name: resnet8, width: 4}}
    method: slimming
    train: {{keep_epochs: [1, 2], keep_best: true}}
  b:
    model: {{family: small, name: resnet8, width: 4}}
    method: imp
    settings: {{rounds: 1, rewind: lr, retrain_epochs: 1}}
    train: {{keep_best: true}}
  d: {{model: {{family: small, name: resnet8, width: 4}}, method: early_bird}}
  c: {{model: {{family: small, name: resnet8, width: 4}}, method: slimming}}
prunings:
  early:
    training: a
    at: epoch-1
    target: {{rule: fraction, value: 0.4}}
    finetune: {{epochs: 1}}
  best: {{training: a, at: best-2, target: {{rule: fraction, value: 0.4}}}}
  ticket: {{training: d, at: ticket-0.3, target: {{rule: fraction, value: 0.3}}}}
  level: {{training: b, at: best-round-1, target: {{rule: zeros}}}}
  control:
    training: b
    at: round-1
    target: {{rule: zeros}}
    shuffle: layerwise
    finetune: {{epochs: 1, start_from: init}}
"""


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


def pruned(study: tuple[Params, Prepared], key: str) -> tuple[float, float]:
    """Test scores before and after pruning."""
    params, prepared = study
    source = TrainArtifact(paths.training(params.pruning(key).training))
    prune.run(params.pruning(key), source, prepared, PrunedArtifact(paths.prune(key)))
    place = Workplace(torch.device("cpu"), paths.checkpoints("finetune", key))
    finetune.run(params, key, prepared, place, Silent())
    record = evaluate.run(params, key, prepared, place)
    assert record.at == params.pruning(key).at
    assert not {"keep_epochs", "keep_best"} & record.finetune.keys()
    return record.dense["top1"], record.pruned["top1"]


def test_states_are_artefacts_of_the_training_and_prunable(study) -> None:
    record, artifact = trained(study, "a"), TrainArtifact(paths.training("a"))
    curve = [point.values for point in record.curve]
    assert set(record.kept) == {"epoch-1", "epoch-2", "best", "best-1", "best-2"}
    for name, state in record.kept.items():
        assert state.validation["top1"] == curve[state.epochs - 1]["validation/top1"], name
        assert artifact.saliency(name).keys() == artifact.saliency("final").keys()
    assert record.kept["best"].validation["top1"] == max(v["validation/top1"] for v in curve)
    first, final = artifact.weights("epoch-1"), artifact.weights("final")
    assert tensors_sha256(first) != tensors_sha256(final) == record.weights_sha
    assert (
        pruned(study, "early")[0] != pruned(study, "best")[0] or record.kept["best-2"].epochs == 1
    )
    told = train_view(record).summary()
    assert told["kept/epoch-1/top1"] == curve[0]["validation/top1"]
    assert told["kept/best/epochs"] == record.kept["best"].epochs


def test_the_best_of_a_round_is_pruned_with_the_mask_of_that_round(study) -> None:
    record = trained(study, "b")
    assert set(record.kept) == {"best", "best-round-0", "best-round-1"}
    assert record.kept["best-round-1"].epochs == 4
    dense, after = pruned(study, "level")
    assert dense == after
    assert PrunedArtifact(paths.prune("level")).plan.sparsity == pytest.approx(0.2, abs=0.02)


def test_a_shuffled_control_branches_off_a_level(study) -> None:
    trained(study, "b")
    pruned(study, "level")
    pruned(study, "control")
    ticket, control = (PrunedArtifact(paths.prune(k)).plan.keep for k in ("level", "control"))
    moved = [n for n in ticket if not torch.equal(ticket[n], control[n])]
    assert moved
    assert {n: int(m.sum()) for n, m in ticket.items()} == {
        n: int(m.sum()) for n, m in control.items()
    }
    assert all(ticket[n].all() for n in ticket if n not in moved), "whole layers stay whole"
    final = PrunedArtifact(paths.finetune("control")).model().state_dict()
    for name in moved:
        assert not final[name][~control[name]].any()
        assert final[name][control[name] & ~ticket[name]].any(), "weights that the level had lost"
    wide = study[0].pruning("control").model_copy(update={"shuffle": "global", "shuffle_seed": 3})
    plan = prune.moved(PrunedArtifact(paths.prune("level")).plan, wide)
    assert plan.kept == sum(int(m.sum()) for m in ticket.values())
    assert wide.ranking == "method, shuffled global (3)"


def test_the_ticket_of_every_ratio_is_kept_as_it_emerged(study) -> None:
    record, artifact = trained(study, "d"), TrainArtifact(paths.training("d"))
    emerged = [k for p in record.curve for k in p.values if k.startswith("eb/ticket_epoch/")]
    assert emerged == ["eb/ticket_epoch/0.3", "eb/ticket_epoch/0.4"]
    shas = [tensors_sha256(artifact.weights(n)) for n in ("ticket-0.3", "final")]
    assert shas[0] != shas[1], "a ticket emerged before the end"
    pruned(study, "ticket")
    assert PrunedArtifact(paths.prune("ticket")).plan.sparsity == pytest.approx(0.3, abs=0.03)


def test_a_training_that_asks_for_nothing_has_the_record_it_always_had(study) -> None:
    record = trained(study, "c")
    text = paths.record("train", "c").read_text()
    assert record.kept is None
    assert "kept" not in text
    assert "keep_" not in text
    states = {p.parent.name for p in paths.training("c").glob("*/model.safetensors")}
    assert states == {"init", "rewind", "final"}


def rounds(number: int) -> str:
    return PARAMS.replace("rounds: 1,", f"rounds: {number},")


class Counts(Silent):
    """An observer that counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        self.told.append((epoch, SECONDS in values))


def train_rounds(number: int) -> tuple[TrainRecord, list[tuple[int, bool]]]:
    """Training b with so many rounds, ended well, and the epochs it told of."""
    Path("params.yaml").write_text(rounds(number))
    params, seen = load_params(), Counts()
    place = Workplace(torch.device("cpu"), paths.checkpoints("train", "b"))
    record = train.run(params, "b", load_prepared(paths.PREPARED), place, seen)
    retire(place.folder)
    return record, seen.told


def states() -> dict[str, str]:
    artifact = TrainArtifact(paths.training("b"))
    found = sorted(p.parent.name for p in artifact.folder.glob("*/model.safetensors"))
    return {name: tensors_sha256(artifact.weights(name)) for name in found}


def test_more_rounds_extend_a_finished_training(study) -> None:
    straight, told = train_rounds(3)
    assert told == [(e, True) for e in range(6)]
    wanted = states()
    shutil.rmtree(paths.checkpoints("train", "b"))
    train_rounds(1)
    shutil.rmtree(paths.training("b"))  # as DVC does before it runs a stage again
    longer, told = train_rounds(3)
    assert told == [(e, e >= 4) for e in range(6)], "rounds 0 and 1 are not trained again"
    assert longer == straight
    assert states() == wanted


def test_the_same_or_fewer_rounds_begin_anew(study) -> None:
    first = train_rounds(2)
    assert train_rounds(2) == first
    shutil.rmtree(paths.training("b"))  # as DVC does
    fewer, told = train_rounds(1)
    assert told == [(e, True) for e in range(4)]
    assert set(states()) == {"init", "rewind", "final", "best", *SHORT}
    assert len(fewer.curve) == 4


SHORT = {"round-0", "round-1", "best-round-0", "best-round-1"}


def test_a_killed_extension_goes_on(study, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, _ = train_rounds(3)
    shutil.rmtree(paths.checkpoints("train", "b"))
    for killed in (4, 5):  # before and after the extension's first checkpoint
        train_rounds(1)
        saved = CheckpointFolder.save

        def dies(self: CheckpointFolder, tree: Any) -> None:
            if len(tree["curve"]) > killed:  # noqa: B023
                raise KeyboardInterrupt
            saved(self, tree)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointFolder, "save", dies)
            with pytest.raises(KeyboardInterrupt):
                train_rounds(3)
        longer, told = train_rounds(3)
        assert longer == straight
        assert [e for e, trained in told if trained] == list(range(killed, 6))
        shutil.rmtree(paths.checkpoints("train", "b"))


def test_another_rate_or_a_target_is_no_extension(study) -> None:
    def mark(settings: str) -> Lineage | None:
        text = rounds(1).replace("rounds: 1,", settings)
        Path("params.yaml").write_text(text)
        params = load_params()
        place = Workplace(torch.device("cpu"), Path("elsewhere"))
        method = method_spec("imp").build(params.method_config("b"))
        train._checkpoints(params, train.draft(params, "b"), method, place)
        path = Path("elsewhere/lineage.json")
        return Lineage(**read_json(path)) if path.exists() else None

    one, more, faster = (
        mark(f"rounds: {n}, prune_per_round: {p},") for n, p in ((1, 0.2), (3, 0.2), (3, 0.3))
    )
    assert one.mark == more.mark != faster.mark
    assert (one.phases, more.phases) == (2, 4)
    assert mark("rounds: 3, target: 0.5,") is None
