"""Initial weights by name, for networks whose papers compare initialisations."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

Initial = Literal["torch", "glorot", "he", "normal", "truncated_normal"]


def initialise(model: nn.Module, initial: Initial, std: float = 0.1) -> nn.Module:
    """Redraw the weights of all convolutions and linear layers in place; biases become zero.

    Args:
        initial: "torch" leaves the layers as torch made them. "glorot" is N(0, 2 / (fan_in +
            fan_out)) (Glorot & Bengio 2010), "he" N(0, 2 / fan_in) (He et al. 2015), "normal"
            N(0, std^2), "truncated_normal" the same within two standard deviations.
        std: standard deviation of the last two.

    Raises:
        ValueError: an unknown name.
    """
    if initial not in get_args(Initial):
        known = ", ".join(get_args(Initial))
        raise ValueError(f"unknown initialisation {initial!r} (known: {known})")
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers if initial != "torch" else ():
        if initial == "glorot":
            nn.init.xavier_normal_(layer.weight)
        elif initial == "he":
            nn.init.kaiming_normal_(layer.weight)
        elif initial == "normal":
            nn.init.normal_(layer.weight, std=std)
        else:
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model
