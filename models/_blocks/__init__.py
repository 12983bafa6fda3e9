"""Building blocks shared by several families.

A network is an `nn.Sequential` of named children, so the names below are its `state_dict` keys.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import relu

from pipeline.data.info import DatasetInfo

Shortcut = Callable[[int, int, int], nn.Module]


def chain(**layers: nn.Module) -> nn.Sequential:
    """The layers in sequence, under their names."""
    return nn.Sequential(OrderedDict(layers))


def conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that halves the image at stride 2 and keeps its size at stride 1."""
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def head(channels: int, classes: int, name: str = "linear") -> dict[str, nn.Module]:
    """Global average pooling and the classifier, called `name`."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        name: nn.Linear(channels, classes),
    }


def he_init(
    model: nn.Sequential,
    *,
    fan: str = "fan_out",
    linear_std: float | None = None,
    norm_scale: float = 1.0,
) -> nn.Sequential:
    """Initialise convolutions from N(0, 2 / fan) (He et al. 2015) in place, biases at zero.

    Args:
        fan: "fan_out" is k * k * out channels, "fan_in" is k * k * in channels.
        linear_std: linear weights from N(0, linear_std^2), biases at zero; None leaves torch's.
        norm_scale: the initial scale of every BatchNorm.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")  # type: ignore[arg-type]
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.weight, norm_scale)
        elif isinstance(layer, nn.Linear) and linear_std is not None:
            nn.init.normal_(layer.weight, std=linear_std)
            nn.init.zeros_(layer.bias)
    return model


def require_size(info: DatasetInfo, halvings: int) -> None:
    """Refuse images that unpadded pooling would shrink to nothing.

    Raises:
        ValueError: an image side is shorter than `2 ** halvings`.
    """
    _, height, width = info.input_shape
    if min(height, width) < 2**halvings:
        raise ValueError(
            f"this network halves its input {halvings} times and needs images of at least "
            f"{2**halvings} x {2**halvings}; {info.name} has {height} x {width}: choose a "
            "network with fewer poolings (family small) or larger images"
        )


def projection(channels: int, out: int, stride: int) -> nn.Module:
    """Option B of He et al. 2016: a 1x1 convolution and BatchNorm."""
    return nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))


def bypass(make: Shortcut, channels: int, out: int, stride: int) -> nn.Module:
    """The identity if the shapes match, else `make(channels, out, stride)`."""
    return nn.Identity() if stride == 1 and channels == out else make(channels, out, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `inner` is the width between the convolutions."""

    def __init__(
        self, channels: int, inner: int, out: int, stride: int, shortcut: Shortcut = projection
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels, inner, 3, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, out, 3)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = bypass(shortcut, channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1; the shortcut's keys start with `bypass_name`."""

    def __init__(
        self, channels: int, inner: int, out: int, stride: int, bypass_name: str = "shortcut"
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.bypass_name = bypass_name
        self.add_module(bypass_name, bypass(projection, channels, out, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return relu(y + self.get_submodule(self.bypass_name)(x))


class Stage(NamedTuple):
    """Residual blocks at one resolution: their number, inner width and output width."""

    blocks: int
    inner: int
    out: int


Block = Callable[[int, int, int, int], nn.Module]


def residual_stages(block: Block, channels: int, stages: Iterable[Stage]) -> dict[str, nn.Module]:
    """`layer1`, `layer2`, ...: every stage but the first halves the image in its first block.

    Args:
        block: called as `block(channels, inner, out, stride)`.
        channels: width of the input of `layer1`.
    """
    layers: dict[str, nn.Module] = {}
    for number, (blocks, inner, out) in enumerate(stages, start=1):
        first = block(channels, inner, out, 1 if number == 1 else 2)
        rest = [block(out, inner, out, 1) for _ in range(blocks - 1)]
        layers[f"layer{number}"] = nn.Sequential(first, *rest)
        channels = out
    return layers


def scaled(width: float, *factors: int) -> list[int]:
    """Whole-channel widths, rounded down."""
    return [math.floor(width * factor) for factor in factors]
