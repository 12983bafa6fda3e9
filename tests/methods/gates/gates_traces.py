"""Recorded numbers of the original gates code, and small networks and groups to check against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, relu6

from methods.gates import Gates, GatesConfig
from pipeline.units.groups import ChannelGroup, Slice, Units
from pipeline.units.trace import trace_units

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> Any:
    """Content of `data/gates_<name>.json`."""
    return json.loads((DATA / f"gates_{name}.json").read_text())


def group(name: str, size: int, *layers: str, **more: Any) -> ChannelGroup:
    """A group from strings: "P conv1" (producer), "N bn1", "C conv2" (consumer), "D dw"
    (depthwise), with an optional offset ("N bn 4") or repeat ("C linear 0 9") of the channels."""
    pieces: list[Slice] = []
    for layer in layers:
        kind, module, *where = layer.split()
        offset, repeat = int(where[0]) if where else 0, int(where[1]) if where[1:] else 1
        index = offset + torch.arange(size * repeat).view(size, repeat)
        if kind == "N":
            pieces += [
                Slice(f"{module}.{t}", 0, "norm", index)
                for t in ("weight", "bias", "running_mean", "running_var")
            ]
        else:
            role = {"C": "consumer", "P": "producer", "D": "norm"}[kind]
            pieces.append(Slice(f"{module}.weight", int(kind == "C"), role, index))
    return ChannelGroup(name, size, tuple(pieces), **more)


class VggBlock(nn.Module):
    """Conv-BN-ReLU."""

    def __init__(self, channels: int = 3, out: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))

    groups = (("gates", 4, "P conv", "N bn"),)


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + x)

    groups = (("gates", 3, "P conv1", "N bn1", "C conv2"),)


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3)
        self.conv3 = nn.Conv2d(3, 5, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(5)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 5, 1, 2, bias=False), nn.BatchNorm2d(5))

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))

    groups = (
        ("gates1", 2, "P conv1", "N bn1", "C conv2"),
        ("gates2", 3, "P conv2", "N bn2", "C conv3"),
    )


class SeparableBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))

    groups = (("gates", 4, "P conv2", "N bn2"),)


class InvertedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = relu6(self.bn2(self.conv2(relu6(self.bn1(self.conv1(x))))))
        return self.bn3(self.conv3(y))

    groups = (("gates", 4, "P conv1", "N bn1", "D conv2", "N bn2", "C conv3"),)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": VggBlock,
    "resnet": ResidualBlock,
    "resnet50": Bottleneck,
    "mobilenet_v1": SeparableBlock,
    "mobilenet_v2": InvertedBlock,
}


class Net(nn.Module):
    """Every kind of group: plain, residual stream, depthwise, concatenation, behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = VggBlock(3, 6)
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 3, 1, bias=False)
        self.right = nn.Conv2d(6, 4, 1, bias=False)
        self.cat_bn = nn.BatchNorm2d(7)
        self.point = nn.Conv2d(7, 4, 1, bias=False)
        self.point_bn = nn.BatchNorm2d(4)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.depth_bn = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 9, 5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + x)
        x = relu(self.cat_bn(torch.cat((self.left(x), self.right(x)), 1)))
        x = relu(self.depth_bn(self.depth(relu(self.point_bn(self.point(x))))))
        return self.linear(relu(self.hidden(x.flatten(1))))


def random_net(seed: int = 0) -> Net:
    """Float64, with random BatchNorm scales, shifts and statistics."""
    torch.manual_seed(seed)
    net = Net().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


NET_UNITS = trace_units(Net(), torch.zeros(1, 3, 3, 3), never_prune=("linear",))


def prepared(net: nn.Module, units: Units = NET_UNITS, **config: Any) -> Gates:
    method = Gates(GatesConfig(**config))
    method.prepare(net, units)
    return method
