"""Pre-activation residual networks (He et al. 2016, "Identity Mappings") for small images.

- `preact_resnet18`: four stages, as in Miao et al. (ICLR 2022).
- `preact_resnet`, `preact_resnetb`: three stages of basic or bottleneck blocks, as in Liu
  et al. (ICCV 2017) and You et al. (ICLR 2020).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from models._blocks import Block, Stage, bypass, chain, conv, he_init, head, residual_stages
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "preact"


def _bare_projection(channels: int, out: int, stride: int) -> nn.Module:
    return conv(channels, out, 1, stride)


class PreActBasic(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; the shortcut is a bare 1x1 convolution.

    `activated`: a projection reads the block's activated input instead of its raw input.
    """

    def __init__(
        self, channels: int, inner: int, out: int, stride: int, activated: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, out, 3)
        self.shortcut = bypass(_bare_projection, channels, out, stride)
        self.activated = activated and isinstance(self.shortcut, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(x))
        skip = self.shortcut(y if self.activated else x)
        y = relu(self.bn2(self.conv1(y)))
        out: Tensor = skip + self.conv2(y)
        return out


class PreActBottleneck(nn.Module):
    """BatchNorm and ReLU before each of 1x1, 3x3, 1x1; a projection reads the raw input."""

    def __init__(self, channels: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, out, 1)
        self.shortcut = bypass(_bare_projection, channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(relu(self.bn1(x)))
        y = self.conv2(relu(self.bn2(y)))
        out: Tensor = self.shortcut(x) + self.conv3(relu(self.bn3(y)))
        return out


def _preact(info: DatasetInfo, block: Block, stem: int, stages: list[Stage]) -> nn.Sequential:
    return chain(
        conv1=conv(info.input_shape[0], stem, 3),
        **residual_stages(block, stem, stages),
        bn=nn.BatchNorm2d(stages[-1].out),
        relu=nn.ReLU(),
        **head(stages[-1].out, info.num_classes),
    )


def _blocks_per_stage(depth: int, layers: int) -> int:
    """n of depth = 3 stages * n blocks * (layers / 3) + 2, `layers` being 6 (basic) or 9."""
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        near = max(blocks, 1) * layers + 2
        raise ValueError(
            f"model.depth: {depth} is not {layers}n + 2 (legal: {layers + 2}, {2 * layers + 2}, "
            f"{3 * layers + 2}, ...); the nearest are {near} and {near + layers}"
        )
    return blocks


@register_model(FAMILY, "preact_resnet18", never_prune=("linear",))
def preact_resnet18(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    """Torch's default initial weights; projections read the activated input."""
    stages = [Stage(2, factor * width, factor * width) for factor in (1, 2, 4, 8)]
    return _preact(info, partial(PreActBasic, activated=True), width, stages)


@register_model(FAMILY, "preact_resnet", never_prune=("linear",))
def preact_resnet(info: DatasetInfo, *, depth: int = 20, width: int = 16) -> nn.Module:
    """Basic blocks: depth = 6n + 2, with n blocks in each of the three stages.

    Raises:
        ValueError: `depth` is not of that form.
    """
    blocks = _blocks_per_stage(depth, 6)
    stages = [Stage(blocks, factor * width, factor * width) for factor in (1, 2, 4)]
    return he_init(_preact(info, PreActBasic, width, stages))


@register_model(FAMILY, "preact_resnetb", never_prune=("linear",))
def preact_resnetb(info: DatasetInfo, *, depth: int = 20, width: int = 16) -> nn.Module:
    """Bottleneck blocks that expand by 4: depth = 9n + 2, n blocks in each of the three stages.

    Raises:
        ValueError: `depth` is not of that form.
    """
    blocks = _blocks_per_stage(depth, 9)
    stages = [Stage(blocks, factor * width, 4 * factor * width) for factor in (1, 2, 4)]
    return he_init(_preact(info, PreActBottleneck, width, stages))
