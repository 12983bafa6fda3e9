"""Positions of gates: the paper's in the registered networks, the general rule elsewhere."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from methods.gates import Gates, GatesConfig, gate_places
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, model_spec
from pipeline.units.groups import Units
from pipeline.units.layers import is_inner
from pipeline.units.trace import trace_units
from tests.methods.gates.gates_traces import NET_UNITS, group, prepared, random_net


def test_inner_gates_never_touch_the_residual_stream() -> None:
    method = prepared(random_net())
    assert list(method.gates) == ["conv1", "left", "right", "point", "hidden"]
    assert list(prepared(random_net(), groups="all").gates)[0] == "stem.conv"


def test_a_group_with_two_readers_is_not_inner() -> None:
    """ResNet50's stem: one producer, but its readers are the block and the projection."""
    net = random_net()
    assert not is_inner(group("stem", 6, "P stem.conv", "N stem.bn", "C left", "C right"), net)
    assert is_inner(group("point", 4, "P point", "D depth", "C hidden 0 9"), net)


def test_gates_sit_on_the_norm_of_each_producer() -> None:
    net, groups = random_net(), NET_UNITS.by_name()
    assert list(gate_places(groups["stem.conv"], net)) == ["stem.bn", "bn2"]
    assert list(gate_places(groups["right"], net)) == ["cat_bn"]
    assert list(gate_places(groups["hidden"], net)) == ["hidden"]
    assert list(gate_places(groups["point"], net)) == ["point_bn"]
    assert list(gate_places(groups["point"], net, True)) == ["point_bn", "depth_bn"]
    normless = group("sum", 3, "P left", "P conv1", "N bn1", "P point", "D depth", "N depth_bn")
    assert list(gate_places(normless, net)) == ["left", "bn1", "point"]
    assert list(gate_places(group("bare", 4, "P point", "D depth"), net)) == ["point"]


TABLE = [
    ("vgg", "vgg16_bn_gap", {"width": 64}, 32, [64, 64, 128, 128, *[256] * 3, *[512] * 6]),
    ("vgg", "vgg19_bn_gap", {"width": 80}, 32, [80, 80, 160, 160, *[320] * 4, *[640] * 8]),
    ("resnet_cifar", "resnet20", {"width": 20}, 32, [*[20] * 3, *[40] * 3, *[80] * 3]),
    ("resnet_cifar", "resnet56", {"width": 20}, 32, [*[20] * 9, *[40] * 9, *[80] * 9]),
    ("resnet_imagenet", "resnet50", {"width": 80}, 64,
     [*[80] * 6, *[160] * 8, *[320] * 12, *[640] * 6]),
    ("mobilenet", "mobilenet_v1", {"width": 40}, 64,
     [40, 80, 160, 160, 320, 320, *[640] * 6, *[1280] * 2]),
    ("mobilenet", "mobilenet_v2", {"width": 40}, 64,
     [40, 120, 180, 180, *[240] * 3, *[480] * 4, *[720] * 3, *[1200] * 3, 1600]),
]  # fmt: skip
GATED_NORM = {
    "vgg": r"features\.\d+",
    "resnet_cifar": r"layer\d\.\d+\.bn1",
    "resnet_imagenet": r"layer\d\.\d+\.bn[12]",
    "mobilenet_v1": r"stem\.bn|blocks\.\d+\.bn2",
    "mobilenet_v2": r"stem\.bn|last\.bn|blocks\.\d+\.branch\.bn1",
}


@pytest.mark.parametrize(("family", "name", "args", "side", "sizes"), TABLE)
def test_gates_stand_where_the_paper_has_them(
    family: str, name: str, args: dict[str, int], side: int, sizes: list[int]
) -> None:
    net = build_model(family, name, DatasetInfo("any", (3, side, side), 10), args)
    units = trace_units(net, torch.zeros(1, 3, side, side), model_spec(family, name).never_prune)
    skip = ("blocks.*.conv3",) if name == "mobilenet_v2" else ()
    groups = Gates(GatesConfig(skip=skip)).gated_groups(net, units)
    assert [g.size for g in groups] == sizes
    for places in (gate_places(g, net) for g in groups):
        (layer,) = places
        assert re.fullmatch(GATED_NORM.get(name, GATED_NORM.get(family, "")), layer)
        assert isinstance(net.get_submodule(layer), nn.BatchNorm2d)


def test_skip_leaves_layers_ungated_and_refuses_to_skip_all() -> None:
    assert list(prepared(random_net(), skip=("p*", "left")).gates) == ["conv1", "right", "hidden"]
    with pytest.raises(ValueError, match=r"methods\.gates\.skip"):
        prepared(random_net(), skip=("*",))


def test_a_layer_that_cannot_be_gated_is_named() -> None:
    net = nn.ModuleDict({"bag": nn.Bilinear(2, 2, 3), "linear": nn.Linear(3, 2)})
    units = Units((), (group("bag", 3, "P bag", "C linear"),))
    with pytest.raises(ValueError, match="bag.weight.*Bilinear.*skip"):
        prepared(net, units)
