"""ResNet-50 for ImageNet (He et al. 2016; stride in the 3x3 convolution, as torchvision's v1.5).

Keys are torchvision's, so its published weights load.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from models._blocks import Bottleneck, Stage, chain, he_init, residual_stages, scaled
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model


@register_model("resnet_imagenet", "resnet50", never_prune=("fc",))
def resnet50(info: DatasetInfo, *, width: int = 64, multiplier: float = 1.0) -> nn.Module:
    """`width` is the inner width of the first stage's bottlenecks (Pruning from Scratch expands it
    to 80); `multiplier` scales the stem and the residual stream."""
    stem, *outs = scaled(multiplier, 64, 256, 512, 1024, 2048)
    rows = zip((3, 4, 6, 3), (1, 2, 4, 8), outs, strict=True)
    stages = [Stage(blocks, factor * width, out) for blocks, factor, out in rows]
    model = chain(
        conv1=nn.Conv2d(info.input_shape[0], stem, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        **residual_stages(partial(Bottleneck, bypass_name="downsample"), stem, stages),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(outs[-1], info.num_classes),
    )
    return he_init(model)
