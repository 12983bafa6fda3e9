"""Fully connected networks; 784-128-128-10 on MNIST is that of Miao et al. (ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from models._blocks import chain
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model


@register_model("mlp", "mlp", never_prune=("classifier",))
def mlp(info: DatasetInfo, *, widths: Sequence[int] = (128, 128)) -> nn.Module:
    """Hidden `widths`, ReLU between them, torch's default initial weights."""
    sizes = [math.prod(info.input_shape), *widths]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, (wide, out) in enumerate(pairwise(sizes), start=1):
        layers |= {f"fc{number}": nn.Linear(wide, out), f"relu{number}": nn.ReLU()}
    return chain(**layers, classifier=nn.Linear(sizes[-1], info.num_classes))
