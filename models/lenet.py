"""The small networks of the pruning literature: LeNets for MNIST, Conv-2/4/6 for CIFAR-10.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, as pruning papers
use them: LeNet-300-100 and Caffe's LeNet-5 (Han et al., NIPS 2015; Lee et al., ICLR 2019). Conv-2,
Conv-4 and Conv-6 are the VGG-like networks of Frankle & Carbin (ICLR 2019, figure 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models._blocks import chain, require_size
from models._blocks.initial import Initial, initialise
from models.mlp import mlp
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "lenet"
CLASSIFIER = ("classifier",)


@register_model(FAMILY, "lenet_300_100", never_prune=CLASSIFIER)
def lenet_300_100(
    info: DatasetInfo,
    *,
    widths: Sequence[int] = (300, 100),
    initial: Initial = "glorot",
    std: float = 0.1,
) -> nn.Module:
    """Two hidden layers; on MNIST 266,610 parameters, 266,200 of them weights."""
    return mlp(info, widths=widths, initial=initial, std=std)


@register_model(FAMILY, "lenet5_caffe", never_prune=CLASSIFIER)
def lenet5_caffe(
    info: DatasetInfo,
    *,
    widths: Sequence[int] = (20, 50, 500),
    initial: Initial = "glorot",
    std: float = 0.1,
) -> nn.Module:
    """Two unpadded 5x5 convolutions with max-pooling and a hidden layer; on MNIST 431,080
    parameters."""
    first, second, hidden = widths
    channels, height, width = info.input_shape
    require_size(info, halvings=4)
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    model = chain(
        conv1=nn.Conv2d(channels, first, 5),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(first, second, 5),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(second * rows * columns, hidden),
        relu=nn.ReLU(),
        classifier=nn.Linear(hidden, info.num_classes),
    )
    return initialise(model, initial, std)


@register_model(FAMILY, "conv2", never_prune=CLASSIFIER)
def conv2(
    info: DatasetInfo, *, width: int = 64, initial: Initial = "glorot", std: float = 0.1
) -> nn.Module:
    """Two 3x3 convolutions of 64 channels; 4,301,642 parameters on CIFAR-10."""
    return _conv(info, (width,), initial, std)


@register_model(FAMILY, "conv4", never_prune=CLASSIFIER)
def conv4(
    info: DatasetInfo, *, width: int = 64, initial: Initial = "glorot", std: float = 0.1
) -> nn.Module:
    """Pairs of 3x3 convolutions of 64 and 128 channels; 2,425,930 parameters on CIFAR-10."""
    return _conv(info, (width, 2 * width), initial, std)


@register_model(FAMILY, "conv6", never_prune=CLASSIFIER)
def conv6(
    info: DatasetInfo, *, width: int = 64, initial: Initial = "glorot", std: float = 0.1
) -> nn.Module:
    """Pairs of 3x3 convolutions of 64, 128 and 256 channels; 2,262,602 parameters on CIFAR-10. The
    paper's figure 2 prints 1.7 million; the densities on its axes fit this network."""
    return _conv(info, (width, 2 * width, 4 * width), initial, std)


def _conv(info: DatasetInfo, widths: tuple[int, ...], initial: Initial, std: float) -> nn.Module:
    """Pairs of convolutions, each pair followed by max-pooling, then 256-256-classes."""
    require_size(info, halvings=len(widths))
    channels, height, width = info.input_shape
    layers: dict[str, nn.Module] = {}
    for stage, out in enumerate(widths, start=1):
        for number, (wide, made) in enumerate(((channels, out), (out, out)), start=1):
            name = f"{stage}_{number}"
            layers |= {f"conv{name}": nn.Conv2d(wide, made, 3, padding=1), f"relu{name}": nn.ReLU()}
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        channels, height, width = out, height // 2, width // 2
    model = chain(
        **layers,
        flatten=nn.Flatten(),
        fc1=nn.Linear(channels * height * width, 256),
        relu_fc1=nn.ReLU(),
        fc2=nn.Linear(256, 256),
        relu_fc2=nn.ReLU(),
        classifier=nn.Linear(256, info.num_classes),
    )
    return initialise(model, initial, std)
