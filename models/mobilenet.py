"""MobileNet v1 (Howard et al. 2017) and v2 (Sandler et al. 2018), with the width arguments of
Pruning from Scratch (Wang et al., AAAI 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from models._blocks import chain, conv, he_init, head, scaled
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "mobilenet"
V1_FACTORS = (2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)
V1_STRIDED = {1, 3, 5, 11}
V2_EXPANDED = (96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3)
"""Expansion widths of blocks 1 to 16; block 0 has no expansion."""
V2_OUT = (16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)
V2_STRIDED = {1, 3, 6, 13}


def _conv_norm(number: int, layer: nn.Conv2d) -> dict[str, nn.Module]:
    return {f"conv{number}": layer, f"bn{number}": nn.BatchNorm2d(layer.out_channels)}


def _conv_norm_relu(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return chain(conv=conv(channels, out, kernel, stride), bn=nn.BatchNorm2d(out), relu=nn.ReLU())


def separable(channels: int, out: int, stride: int) -> nn.Sequential:
    return chain(
        **_conv_norm(1, conv(channels, channels, 3, stride, groups=channels)),
        relu1=nn.ReLU(),
        **_conv_norm(2, conv(channels, out, 1)),
        relu2=nn.ReLU(),
    )


class InvertedResidual(nn.Module):
    """Expansion (unless `expanded` is None), depthwise convolution, linear projection, and a skip
    connection if the shapes match.

    Expansion is explicit, never inferred from the widths, since pruning may make these equal.
    """

    def __init__(self, channels: int, expanded: int | None, out: int, stride: int) -> None:
        super().__init__()
        hidden = channels if expanded is None else expanded
        layers: dict[str, nn.Module] = {}
        if expanded is not None:
            layers |= _conv_norm(1, conv(channels, hidden, 1)) | {"relu1": nn.ReLU6()}
        layers |= _conv_norm(2, conv(hidden, hidden, 3, stride, groups=hidden))
        layers |= {"relu2": nn.ReLU6()} | _conv_norm(3, conv(hidden, out, 1))
        self.branch = chain(**layers)
        self.skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y if self.skip else y


@register_model(FAMILY, "mobilenet_v1", never_prune=("linear",))
def mobilenet_v1(info: DatasetInfo, *, width: int = 32) -> nn.Module:
    """`width`: channels of the stem; all other widths are multiples of it."""
    stem = _conv_norm_relu(info.input_shape[0], width, 3, stride=2)
    blocks: list[nn.Module] = []
    channels = width
    for index, out in enumerate(scaled(width, *V1_FACTORS)):
        blocks.append(separable(channels, out, 2 if index in V1_STRIDED else 1))
        channels = out
    model = chain(stem=stem, blocks=nn.Sequential(*blocks), **head(channels, info.num_classes))
    return he_init(model, linear_std=0.01)


@register_model(FAMILY, "mobilenet_v2", never_prune=("linear",))
def mobilenet_v2(info: DatasetInfo, *, width: int = 32, multiplier: float = 1.0) -> nn.Module:
    """`width` scales the stem, the expansions and the last convolution; `multiplier` scales the
    outputs of the blocks."""
    first, *expanded, last = scaled(width / 32, 32, *V2_EXPANDED, 1280)
    outs = scaled(multiplier, *V2_OUT)
    blocks: list[nn.Module] = []
    channels = first
    for index, (hidden, out) in enumerate(zip([None, *expanded], outs, strict=True)):
        blocks.append(InvertedResidual(channels, hidden, out, 2 if index in V2_STRIDED else 1))
        channels = out
    model = chain(
        stem=_conv_norm_relu(info.input_shape[0], first, 3, stride=2),
        blocks=nn.Sequential(*blocks),
        last=_conv_norm_relu(channels, last, 1),
        **head(last, info.num_classes),
    )
    return he_init(model, linear_std=0.01)
