"""Every registered network on other images, classes and widths; names, strides and shortcuts."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models._blocks import Bottleneck
from models.mobilenet import InvertedResidual
from models.preact import PreActBottleneck
from pipeline.data.info import DatasetInfo
from pipeline.registry import (
    ModelSpec,
    build_model,
    family_models,
    family_names,
    model_spec,
)

NETWORKS = [
    spec
    for family in family_names()
    for spec in family_models(family).values()
    if spec.task == "classification"
]
SMALLEST = {
    "lenet5_caffe": 16,
    "vgg16": 32,
    "vgg16_bn": 32,
    "vgg16_bn_linear": 32,
    "vgg16_bn_lth": 16,
    "vgg11_bn_gap": 16,
    "vgg16_bn_gap": 16,
    "vgg19_bn_gap": 16,
}
"""Shortest image side, where it is more than 8."""

every_network = pytest.mark.parametrize("spec", NETWORKS, ids=lambda s: f"{s.family}-{s.name}")


def _info(side: int, channels: int = 3, classes: int = 10) -> DatasetInfo:
    return DatasetInfo("images", (channels, side, side), classes)


def test_families_and_networks() -> None:
    depths = (20, 32, 44, 56, 110)
    assert {(s.family, s.name) for s in NETWORKS} == {
        *(("resnet_cifar", f"resnet{d}{kind}") for d in depths for kind in ("", "_a")),
        *(("resnet_cifar", name) for name in ("resnet18", "resnet50")),
        ("resnet_imagenet", "resnet50"),
        *(("preact", f"preact_resnet{kind}") for kind in ("", "b", "18")),
        *(("vgg", f"vgg16{kind}") for kind in ("", "_bn", "_bn_linear", "_bn_lth", "_bn_gap")),
        *(("vgg", f"vgg{depth}_bn_gap") for depth in (11, 19)),
        *(("mobilenet", f"mobilenet_v{v}") for v in (1, 2)),
        ("mlp", "mlp"),
        *(("lenet", name) for name in ("lenet_300_100", "lenet5_caffe", "conv2", "conv4", "conv6")),
        *(("small", name) for name in ("resnet8", "vgg_small")),
    }


@every_network
@pytest.mark.parametrize(("side", "channels", "classes"), [(8, 1, 10), (32, 3, 7), (64, 3, 200)])
def test_output_shape(spec: ModelSpec, side: int, channels: int, classes: int) -> None:
    info = _info(side, channels, classes)
    with torch.device("meta"):
        if side < SMALLEST.get(spec.name, 8):
            with pytest.raises(ValueError, match=f"at least {SMALLEST[spec.name]} x"):
                spec.build(info)
            return
        out = spec.build(info).eval()(torch.empty(2, channels, side, side))
    assert out.shape == (2, classes)


@every_network
def test_never_prune_is_the_classifier(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = spec.build(_info(32, classes=7))
    (name,) = spec.never_prune
    classifier = model.get_submodule(name)
    assert isinstance(classifier, nn.Linear)
    assert classifier.out_features == 7
    assert [m for m in model.modules() if isinstance(m, nn.Linear)][-1] is classifier


@every_network
def test_arguments_are_keywords_with_defaults(spec: ModelSpec) -> None:
    info, *knobs = inspect.signature(spec.build).parameters.values()
    assert info.name == "info"
    assert knobs
    for knob in knobs:
        assert knob.kind is knob.KEYWORD_ONLY
        assert knob.default is not knob.empty


@every_network
def test_first_knob_changes_the_network(spec: ModelSpec) -> None:
    knob = list(inspect.signature(spec.build).parameters.values())[1]
    value = {"width": 8, "depth": 38, "widths": [16, 8, 4]}[knob.name]
    with torch.device("meta"):
        changed = spec.build(_info(32), **{knob.name: value})
        default = spec.build(_info(32))
        assert changed.eval()(torch.empty(1, 3, 32, 32)).shape == (1, 10)
    shapes = [[p.shape for p in m.parameters()] for m in (changed, default)]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
    ("family", "name", "args"),
    [
        ("small", "resnet8", {"width": 4}),
        ("small", "vgg_small", {"width": 4}),
        ("mlp", "mlp", {"widths": [5]}),
        ("mlp", "mlp", {"widths": [5], "batch_norm": True}),
        ("lenet", "conv4", {"width": 4}),
        ("resnet_cifar", "resnet20_a", {"width": 3}),
        ("preact", "preact_resnetb", {"depth": 11, "width": 4}),
        ("mobilenet", "mobilenet_v2", {"width": 8, "multiplier": 0.5}),
    ],
)
def test_trains_on_odd_images(family: str, name: str, args: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model(family, name, DatasetInfo("odd", (2, 9, 11), 3), args)
    model(torch.randn(4, 2, 9, 11)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("depth", [20, 32])
def test_option_a_keys_are_those_of_the_public_checkpoints(depth: int) -> None:
    model = model_spec("resnet_cifar", f"resnet{depth}_a").build(_info(32))
    norm = ("weight", "bias", "running_mean", "running_var")
    layers = [
        f"layer{stage}.{block}.{kind}{i}"
        for stage in (1, 2, 3)
        for block in range((depth - 2) // 6)
        for i in (1, 2)
        for kind in ("conv", "bn")
    ]
    expected = [
        key
        for layer in ["conv1", "bn1", *layers]
        for key in ([f"{layer}.{n}" for n in norm] if "bn" in layer else [f"{layer}.weight"])
    ]
    old = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    assert list(old) == [*expected, "linear.weight", "linear.bias"]
    model.load_state_dict(old)


def test_imagenet_keys_and_shapes_are_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ours = model_spec("resnet_imagenet", "resnet50").build(_info(224, classes=1000))
        theirs = models.resnet50()
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


def test_imagenet_network_computes_what_torchvisions_does() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours = model_spec("resnet_imagenet", "resnet50").build(_info(64, classes=5)).eval()
    theirs = models.resnet50(num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_resnet18_keys() -> None:
    keys = {
        name
        for name, _ in model_spec("resnet_cifar", "resnet18").build(_info(32)).named_parameters()
    }
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"} <= keys
    assert "classifier.weight" in keys


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: Bottleneck(4, 2, 8, 2), "conv2"),
        (lambda: PreActBottleneck(4, 2, 8, 2), "conv2"),
        (lambda: InvertedResidual(4, 8, 8, 2), "branch.conv2"),
    ],
)
def test_the_3x3_convolution_carries_the_stride(make: Callable[[], nn.Module], layer: str) -> None:
    block = make()
    strides = {n: m.stride[0] for n, m in block.named_modules() if isinstance(m, nn.Conv2d)}
    assert strides.pop(layer) == 2
    assert {s for n, s in strides.items() if "shortcut" not in n} == {1}


def test_mobilenet_v2_uses_relu6_in_its_blocks_only() -> None:
    model = model_spec("mobilenet", "mobilenet_v2").build(_info(32))
    kinds = {n.split(".")[0]: type(m) for n, m in model.named_modules() if "relu" in n}
    assert kinds == {"stem": nn.ReLU, "blocks": nn.ReLU6, "last": nn.ReLU}
    blocks = [m for m in model.modules() if isinstance(m, InvertedResidual)]
    skips = [i for i, block in enumerate(blocks) if block.skip]
    assert skips == [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]


@pytest.mark.parametrize(
    ("name", "depth", "near"),
    [
        ("preact_resnet", 21, "20 and 26"),
        ("preact_resnet", 2, "8 and 14"),
        ("preact_resnet", 56, None),
        ("preact_resnetb", 21, "20 and 29"),
        ("preact_resnetb", 32, "29 and 38"),
        ("preact_resnetb", -7, "11 and 20"),
        ("preact_resnetb", 164, None),
    ],
)
def test_illegal_depth_names_the_legal_ones(name: str, depth: int, near: str | None) -> None:
    with torch.device("meta"):
        if near is None:
            assert build_model("preact", name, _info(32), {"depth": depth})
            return
        with pytest.raises(ValueError, match=f"model.depth: {depth} is not.*nearest are {near}"):
            build_model("preact", name, _info(32), {"depth": depth})
