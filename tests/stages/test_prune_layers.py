"""`layers: conv` of a pruning: weights of convolutions only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.data.info import DatasetInfo
from pipeline.selection.saliency import magnitude
from pipeline.selection.select import select
from pipeline.study.params.load import ParamsError, load_params
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.units.groups import Granularity
from stages.prune import narrowed

STUDY = Path(__file__).resolve().parents[2] / "studies" / "tickets-cifar10" / "seed" / "params.yaml"
PARAMS = """
study: t
data: {name: digits}
train: {epochs: 1}
methods: {dense: {}, slimming: {}}
trainings:
  a: {model: {family: small, name: resnet8}, method: METHOD}
prunings:
  p: {training: a, layers: conv, target: {rule: fraction, value: 0.5}}
"""


def test_one_shot_rows_of_the_seed_rank_its_214192_convolution_weights() -> None:
    params = load_params(STUDY)
    rows = [k for k, p in params.file.prunings.items() if p.target.rule == "fraction"]
    assert len(rows) == 6
    torch.manual_seed(0)
    info = DatasetInfo("cifar10", (3, 32, 32), 10)
    network = NetworkSpec.of(params.training("resnetb20-s1").model, info)
    model = network.build()
    units = network.units(model)
    scores = magnitude(model, units)
    assert sum(s.numel() for s in scores.values()) == 216_752
    for key in rows:
        pruning = params.pruning(key)
        left = narrowed(scores, pruning, model, units)
        plan = select(left, Granularity.UNSTRUCTURED, pruning.target)
        assert plan.total == 214_192
        assert plan.kept == 214_192 - int(pruning.target.value * 214_192)
        assert pruning.ranking == "method, convolutions"


@pytest.mark.parametrize(("method", "fine"), [("dense", True), ("slimming", False)])
def test_layers_are_for_single_weights(method: str, fine: bool, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace("METHOD", method))
    if fine:
        assert load_params(path).pruning("p").layers == "conv"
        return
    with pytest.raises(ParamsError, match="layers: conv chooses single weights"):
        load_params(path)
