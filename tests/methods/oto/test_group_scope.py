"""`groups: inner`: only channels inside a block, no residual stream, as in OTO on ImageNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from methods.hspg import PRESETS
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, method_spec, model_spec
from pipeline.study.params.load import load_params
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units
from pipeline.units.trace import trace_units

NAMES = ("hspg", "dhspg", "hesso", "hesso_cric")
STUDY = Path(__file__).resolve().parents[3] / "studies" / "oto-imagenet" / "params.yaml"


def _method(name: str, **settings: Any) -> Any:
    spec = method_spec(name)
    return spec.build(spec.config(**settings))


@pytest.fixture(scope="module")
def resnet50() -> tuple[nn.Module, Units]:
    from torchvision.models import resnet50

    model = resnet50()
    return model, trace_units(model, torch.randn(1, 3, 64, 64), ("fc",))


@pytest.mark.parametrize("name", NAMES)
def test_resnet50_has_7552_inner_channels(name: str, resnet50: tuple[nn.Module, Units]) -> None:
    """Theirs: conv1 and conv2 of all 16 bottlenecks, 15,661,824 parameters."""
    method = _method(name, groups="inner")
    method.prepare(*resnet50)
    rows = method.rows(resnet50[0])
    assert (rows.count, len(rows.groups)) == (7552, 32)
    assert sum(p.numel() for p in rows.params) == 15_661_824
    assert {g.name.rsplit(".", 1)[1] for g in rows.groups} == {"conv1", "conv2"}
    whole = _method(name)
    whole.prepare(*resnet50)
    assert whole.rows(resnet50[0]).count == 11456


def test_the_study_of_imagenet_asks_for_it() -> None:
    training = load_params(STUDY).file.trainings["imagenet-resnet50-hspg-s2"]
    asked = load_params(STUDY).file.methods["hspg"]
    assert asked["groups"] == PRESETS["resnet50-imagenet"]["method"]["groups"] == "inner"
    family, name = training.model.family, training.model.name
    info = DatasetInfo("imagenet", (3, 64, 64), 10)
    model = build_model(family, name, info)
    units = trace_units(model, torch.randn(1, 3, 64, 64), model_spec(family, name).never_prune)
    method = _method("hspg", **asked)
    method.prepare(model, units)
    assert method.rows(model).count == 7552


@pytest.mark.parametrize("name", NAMES)
def test_groups_out_of_scope_have_no_score_and_take_plain_steps(name: str) -> None:
    torch.manual_seed(0)
    model = build_model("small", "resnet8", DatasetInfo("toy", (1, 8, 8), 3), {"width": 4})
    units = trace_units(model, torch.randn(1, 1, 8, 8), ("linear",))
    method = _method(name, groups="inner")
    method.prepare(model, units)
    optimizer = method.optimizer(model, Phase("half-space", 1), Recipe(epochs=1))
    treated = {g.name for g in method.rows(model).groups}
    assert 0 < len(treated) < len(units.prunable)
    assert set(method.saliency(model, units)) == treated
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in model.parameters()}


def test_a_network_without_inner_groups_is_refused() -> None:
    torch.manual_seed(0)
    model = build_model("small", "resnet8", DatasetInfo("toy", (1, 8, 8), 3), {"width": 4})
    units = trace_units(model, torch.randn(1, 1, 8, 8), ("linear",))
    streams = Units(units.weights, tuple(g for g in units.groups if "conv1" not in g.name))
    method = _method("hspg", groups="inner")
    with pytest.raises(ValueError, match="groups: all"):
        method.prepare(model, streams)
