"""Two small networks for 8x8 to 32x32 images: the default study on scikit-learn's digits."""

from __future__ import annotations

from torch import nn

from models._blocks import (
    BasicBlock,
    Stage,
    chain,
    conv,
    he_init,
    head,
    require_size,
    residual_stages,
)
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "small"


@register_model(FAMILY, "resnet8", never_prune=("linear",))
def resnet8(info: DatasetInfo, *, width: int = 16) -> nn.Module:
    """A ResNet of He et al. 2016, section 4.2, one block per stage, with projection shortcuts."""
    stages = [Stage(1, factor * width, factor * width) for factor in (1, 2, 4)]
    model = chain(
        conv1=conv(info.input_shape[0], width, 3),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        **residual_stages(BasicBlock, width, stages),
        **head(4 * width, info.num_classes),
    )
    return he_init(model)


@register_model(FAMILY, "vgg_small", never_prune=("linear",))
def vgg_small(info: DatasetInfo, *, width: int = 32) -> nn.Module:
    """Five convolutions with BatchNorm, two max-poolings, one linear layer."""
    require_size(info, halvings=2)
    layers: list[nn.Module] = []
    channels = info.input_shape[0]
    for factor, pooled in ((1, False), (1, True), (2, False), (2, True), (4, False)):
        out = factor * width
        layers += [conv(channels, out, 3), nn.BatchNorm2d(out), nn.ReLU()]
        if pooled:
            layers.append(nn.MaxPool2d(2))
        channels = out
    return he_init(chain(features=nn.Sequential(*layers), **head(channels, info.num_classes)))
