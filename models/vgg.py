"""VGG networks (Simonyan and Zisserman 2015) for small images.

- `vgg16`, `vgg16_bn`: OTO (Chen et al., NeurIPS 2021): a classifier of three linear layers with
  dropout; convolutions have a bias even before BatchNorm.
- `vgg16_bn_linear`: Miao et al. (ICLR 2022): one linear layer, convolution biases.
- `vgg16_bn_lth`: OpenLTH and SynFlow (Tanaka et al., NeurIPS 2020): one linear layer, convolution
  biases, four max-poolings and then average pooling, He normal weights.
- `vgg11_bn_gap`, `vgg16_bn_gap`, `vgg19_bn_gap`: Liu et al. (ICCV 2017), Early-Bird tickets (You et
  al., ICLR 2020), Pruning from Scratch (Wang et al., AAAI 2020): one linear layer, no convolution
  biases, four max-poolings and then global average pooling (their 2x2 average pooling on 32x32
  images), BatchNorm scales start at 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models._blocks import chain, he_init, require_size
from models._blocks.initial import initialise
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "vgg"
POOL = 0
"""Marks a 2x2 max-pooling in a list of widths."""


def _widths(width: int, convs: Sequence[int], last_pool: bool) -> list[int]:
    """Output widths of five stages of 3x3 convolutions, with a pooling after each stage."""
    factors = (1, 2, 4, 8, 8)
    stages = [[f * width] * n + [POOL] for f, n in zip(factors, convs, strict=True)]
    flat = [w for stage in stages for w in stage]
    return flat if last_pool else flat[:-1]


def _features(info: DatasetInfo, widths: Sequence[int], *, norm: bool, bias: bool) -> nn.Sequential:
    require_size(info, widths.count(POOL))
    layers: list[nn.Module] = []
    channels = info.input_shape[0]
    for width in widths:
        if width == POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def _vgg(features: nn.Sequential, classifier: nn.Module) -> nn.Sequential:
    return chain(
        features=features,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=classifier,
    )


VGG11 = (1, 1, 2, 2, 2)
VGG16 = (2, 2, 3, 3, 3)
VGG19 = (2, 2, 4, 4, 4)


def _three_linear_layers(info: DatasetInfo, width: int, norm: bool) -> nn.Module:
    hidden = 8 * width
    features = _features(info, _widths(width, VGG16, last_pool=True), norm=norm, bias=True)
    classifier = nn.Sequential(
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, info.num_classes),
    )
    return he_init(_vgg(features, classifier))


@register_model(FAMILY, "vgg16", never_prune=("classifier.6",))
def vgg16(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    return _three_linear_layers(info, width, norm=False)


@register_model(FAMILY, "vgg16_bn", never_prune=("classifier.6",))
def vgg16_bn(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    return _three_linear_layers(info, width, norm=True)


@register_model(FAMILY, "vgg16_bn_linear", never_prune=("classifier",))
def vgg16_bn_linear(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    """Torch's default initial weights."""
    features = _features(info, _widths(width, VGG16, last_pool=True), norm=True, bias=True)
    return _vgg(features, nn.Linear(8 * width, info.num_classes))


@register_model(FAMILY, "vgg16_bn_lth", never_prune=("classifier",))
def vgg16_bn_lth(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    features = _features(info, _widths(width, VGG16, last_pool=False), norm=True, bias=True)
    return initialise(_vgg(features, nn.Linear(8 * width, info.num_classes)), "he")


def _one_linear_layer(info: DatasetInfo, width: int, convs: Sequence[int]) -> nn.Module:
    features = _features(info, _widths(width, convs, last_pool=False), norm=True, bias=False)
    model = _vgg(features, nn.Linear(8 * width, info.num_classes))
    return he_init(model, linear_std=0.01, norm_scale=0.5)


@register_model(FAMILY, "vgg11_bn_gap", never_prune=("classifier",))
def vgg11_bn_gap(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    return _one_linear_layer(info, width, VGG11)


@register_model(FAMILY, "vgg16_bn_gap", never_prune=("classifier",))
def vgg16_bn_gap(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    return _one_linear_layer(info, width, VGG16)


@register_model(FAMILY, "vgg19_bn_gap", never_prune=("classifier",))
def vgg19_bn_gap(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    return _one_linear_layer(info, width, VGG19)
