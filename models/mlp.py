"""Fully connected networks.

784-128-128-10 on MNIST is the network of Miao et al. (ICLR 2022); 784-500-300-10 with BatchNorm is
that of network slimming (Liu et al., ICCV 2017, table 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from models._blocks import chain
from models._blocks.initial import Initial, initialise
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model


@register_model("mlp", "mlp", never_prune=("classifier",))
def mlp(
    info: DatasetInfo,
    *,
    widths: Sequence[int] = (128, 128),
    batch_norm: bool = False,
    initial: Initial = "torch",
    std: float = 0.1,
) -> nn.Module:
    """Hidden layers of `widths` units, each followed by BatchNorm (if asked for) and ReLU."""
    sizes = [math.prod(info.input_shape), *widths]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, (wide, out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{number}"] = nn.Linear(wide, out)
        if batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(out)
        layers[f"relu{number}"] = nn.ReLU()
    model = chain(**layers, classifier=nn.Linear(sizes[-1], info.num_classes))
    return initialise(model, initial, std)
