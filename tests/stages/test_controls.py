"""Controls of learned widths: the same groups, the same budget, other widths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, ParamsError, load_params
from pipeline.study.records.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.records.counts import count_network
from pipeline.study.records.record import write_record
from pipeline.training.loop.job import Silent
from pipeline.units.plan import PruningPlan
from stages import evaluate, finetune, prune, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """
study: t
root: ROOT
data: {name: digits, val_size: 100, limit: 200}
train: {epochs: 1, batch_size: 50, schedule: {name: constant}}
evaluate: {batch_size: 400}
methods: {dense: {}, gates: {}}
trainings:
  gates: {model: &wide {family: small, name: resnet8, width: 10}, method: gates}
  wide: &none {model: *wide, method: dense, train: {epochs: 0}}
  wide-s1: {<<: *none, seed: 1}
prunings:
  learned: {training: gates, target: {rule: macs, value: 0.3}, reference: {width: 8}}
  random: &random
    training: wide
    granularity: structured
    saliency: random
    groups: inner
    target: {rule: macs, value: 0.3, scope: random, closest: true}
    reference: {width: 8}
    finetune: {epochs: 1, start_from: random}
  again: *random
  random-s1: {<<: *random, training: wide-s1}
  uniform: {<<: *random, target: {rule: macs, value: 0.3, scope: random, narrowest: 1.0}}
  fewer: {<<: *random, skip: ["layer1.*"]}
""".replace("ROOT", str(ROOT))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Prepared]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    prepare(DataConfig(name="digits", val_size=100, limit=200), paths.PREPARED)
    made = load_params(), load_prepared(paths.PREPARED)
    for key in made[0].file.trainings:
        place = Workplace(torch.device("cpu"), paths.checkpoints("train", key))
        record = train.run(made[0], key, made[1], place, Silent())
        write_record(paths.record("train", key), record)
    return made


def pruned(study: tuple[Params, Prepared], key: str) -> PruningPlan:
    params, prepared = study
    source = TrainArtifact(paths.training(params.pruning(key).training))
    return prune.run(params.pruning(key), source, prepared, PrunedArtifact(paths.prune(key)))


def fractions(plan: PruningPlan) -> list[float]:
    return [float(mask.float().mean()) for mask in plan.keep.values()]


def test_a_control_cuts_the_groups_of_the_gates_to_their_budget(study) -> None:
    params, _ = study
    plans = {key: pruned(study, key) for key in params.file.prunings}
    assert plans["learned"].keep.keys() == plans["random"].keep.keys()
    assert len(plans["random"].keep) < len(TrainArtifact(paths.training("wide")).saliency("final"))
    assert plans["random"].digest() == plans["again"].digest()
    assert plans["random"].digest() != plans["random-s1"].digest()
    network = TrainArtifact(paths.training("wide")).network
    narrow = type(network)(*(*_names(network), {"width": 8}, network.info)).build()
    standard = count_network(network, narrow)
    dearest = 0.06  # of the reference: a channel of the widest images
    for key in ("random", "random-s1", "uniform"):
        macs = count_network(network, PrunedArtifact(paths.prune(key)).model()).macs
        assert abs(macs / (0.7 * standard.macs) - 1) < dearest, key
    spread = {k: max(fractions(p)) - min(fractions(p)) for k, p in plans.items()}
    assert spread["uniform"] < 0.15 < spread["random"]
    whole = plans["random"].keep.keys() - plans["fewer"].keep.keys()
    assert whole == {"layer1.0.conv1"}


def _names(network) -> tuple[str, str]:
    return network.family, network.name


def test_a_row_of_the_table(study) -> None:
    params, prepared = study
    pruned(study, "random")
    place = Workplace(torch.device("cpu"), paths.checkpoints("finetune", "random"))
    finetune.run(params, "random", prepared, place, Silent())
    record = evaluate.run(params, "random", prepared, place)
    assert record.saliency == "random, inner groups"
    assert record.target["scope"] == "random"
    assert params.pruning("fewer").ranking == "random, inner groups, not layer1.*"
    assert "groups" not in params.pruning("learned").ranking


def test_no_group_left_is_an_error_with_a_way_out(study) -> None:
    params, prepared = study
    nothing = params.pruning("random").model_copy(update={"skip": ("*",)})
    with pytest.raises(
        ValueError, match=r"groups: inner, skip: \['\*'\] leave none of the .*widen"
    ):
        prune.run(
            nothing, TrainArtifact(paths.training("wide")), prepared, PrunedArtifact(Path("x"))
        )


@pytest.mark.parametrize("key", ["groups: inner", "skip: [a]"])
def test_single_weights_have_no_groups(tmp_path: Path, key: str) -> None:
    text = PARAMS + f"  wrong: {{training: wide, {key}, target: {{rule: none}}}}\n"
    (tmp_path / "params.yaml").write_text(text)
    said = rf"prunings\.wrong\.{key[:4]}.*: chooses channel groups and needs granularity"
    with pytest.raises(ParamsError, match=said):
        load_params(tmp_path / "params.yaml")


def test_the_controls_of_the_study_are_of_the_gates_rows() -> None:
    """Same wide network, same groups, same budget, same retraining."""
    study = load_params(ROOT / "studies/pfs-cifar10/params.yaml")
    controls = [k for k in study.file.prunings if "-uniform-" in k or "-random-" in k]
    assert len(controls) == 24
    for key in controls:
        own = study.pruning(key)
        learned = next(
            study.file.prunings[name]
            for kind in ("uniform", "random")
            if (name := key.replace(f"-{kind}-", "-gates-")) != key
        )
        gates = study.method_config(learned.training)
        assert study.training(own.training).model == study.training(learned.training).model
        assert (own.groups, own.skip) == (gates.groups, gates.skip)
        assert (own.target.value, own.reference) == (learned.target.value, learned.reference)
        assert own.finetune == learned.finetune
