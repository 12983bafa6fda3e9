"""Initial weights, as each paper's code draws them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model

INFO = DatasetInfo("cifar10", (3, 32, 32), 10)


def _build(network: str, args: dict[str, object] | None = None) -> nn.Module:
    torch.manual_seed(0)
    family, name = network.split("/")
    return build_model(family, name, INFO, args)


def _convs(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def _assert_standard_normal(z: torch.Tensor) -> None:
    """Mean, standard deviation and fourth moment (3; 1.8 if uniform) within 6 standard errors."""
    n = z.numel()
    assert abs(z.mean().item()) < 6 / math.sqrt(n)
    assert abs(z.std().item() - 1) < 6 / math.sqrt(2 * n)
    assert abs(z.pow(4).mean().item() - 3) < 6 * math.sqrt(96 / n)


@pytest.mark.parametrize(
    ("network", "args"),
    [
        ("vgg/vgg16", {"width": 16}),
        ("vgg/vgg16_bn", {"width": 16}),
        ("vgg/vgg16_bn_gap", {"width": 16}),
        ("vgg/vgg11_bn_gap", {"width": 16}),
        ("vgg/vgg19_bn_gap", {"width": 16}),
        ("resnet_cifar/resnet20", {}),
        ("resnet_imagenet/resnet50", {"width": 8, "multiplier": 0.125}),
        ("preact/preact_resnet", {}),
        ("preact/preact_resnetb", {}),
        ("mobilenet/mobilenet_v1", {"width": 8}),
        ("mobilenet/mobilenet_v2", {"width": 8}),
        ("small/resnet8", {}),
        ("small/vgg_small", {}),
    ],
)
def test_convolutions_start_with_variance_two_over_fan_out(
    network: str, args: dict[str, object]
) -> None:
    convs = _convs(_build(network, args))
    for conv in convs:
        fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
        _assert_standard_normal(conv.weight.detach().flatten() / math.sqrt(2 / fan_out))
        assert conv.bias is None or not conv.bias.any()


def test_option_a_starts_with_variance_two_over_fan_in() -> None:
    model = _build("resnet_cifar/resnet20_a")
    for conv in _convs(model):
        std = math.sqrt(2 / (9 * conv.in_channels))
        _assert_standard_normal(conv.weight.detach().flatten() / std)
    linear = model.get_parameter("linear.weight").detach()
    _assert_standard_normal(linear.flatten() / math.sqrt(2 / 64))


@pytest.mark.parametrize(
    "network", ["vgg/vgg16_bn_linear", "resnet_cifar/resnet18", "preact/preact_resnet18"]
)
def test_torch_defaults_are_left_alone(network: str) -> None:
    """U(-b, b) with b = 1 / sqrt(fan_in), weights and biases alike."""
    model = _build(network, {"width": 8})
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
        assert layer.bias is None or layer.bias.abs().max().item() <= bound
        assert layer.bias is None or layer.bias.any()


@pytest.mark.parametrize(
    ("network", "scale"),
    [
        ("vgg/vgg16_bn", 1.0),
        ("vgg/vgg16_bn_linear", 1.0),
        ("vgg/vgg16_bn_gap", 0.5),
        ("vgg/vgg11_bn_gap", 0.5),
        ("vgg/vgg19_bn_gap", 0.5),
        ("resnet_cifar/resnet20", 1.0),
        ("resnet_cifar/resnet20_a", 1.0),
        ("preact/preact_resnet", 1.0),
        ("preact/preact_resnetb", 1.0),
        ("mobilenet/mobilenet_v1", 1.0),
        ("mobilenet/mobilenet_v2", 1.0),
    ],
)
def test_norm_scales(network: str, scale: float) -> None:
    norms = [m for m in _build(network).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(torch.equal(m.weight, torch.full_like(m.weight, scale)) for m in norms)
    assert not any(m.bias.any() for m in norms)


@pytest.mark.parametrize(
    ("network", "classifier"),
    [
        ("vgg/vgg16_bn_gap", "classifier"),
        ("vgg/vgg19_bn_gap", "classifier"),
        ("mobilenet/mobilenet_v1", "linear"),
        ("mobilenet/mobilenet_v2", "linear"),
    ],
)
def test_linear_layers_that_start_small(network: str, classifier: str) -> None:
    linear = _build(network).get_submodule(classifier)
    assert isinstance(linear, nn.Linear)
    _assert_standard_normal(linear.weight.detach().flatten() / 0.01)
    assert not linear.bias.any()


def test_dropout_is_in_the_three_layer_classifier_only() -> None:
    rates = [m.p for m in _build("vgg/vgg16", {"width": 8}).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.5, 0.5]
    others = _build("vgg/vgg16_bn_linear", {"width": 8}).modules()
    assert not any(isinstance(m, nn.Dropout) for m in others)


def test_the_seed_decides_the_weights() -> None:
    first, second = (_build("small/resnet8").state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("initial", "variance"),
    [("glorot", 2 / (3072 + 64)), ("he", 2 / 3072), ("normal", 0.3**2)],
)
def test_named_initialisations_have_their_variance(initial: str, variance: float) -> None:
    args = {"widths": [64, 32], "initial": initial, "std": 0.3}
    first = _build("lenet/lenet_300_100", args).get_submodule("fc1")
    _assert_standard_normal(first.weight.detach().flatten() / math.sqrt(variance))
    assert not first.bias.any()


def test_a_truncated_normal_ends_at_two_deviations() -> None:
    args = {"initial": "truncated_normal", "std": 0.3}
    weight = _build("lenet/lenet_300_100", args).get_submodule("fc1").weight
    assert 0.59 < weight.abs().max() <= 0.6


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(ValueError, match="known: torch, glorot, he, normal, truncated_normal"):
        _build("lenet/lenet_300_100", {"initial": "xavier"})
