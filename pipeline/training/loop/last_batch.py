"""Refuse a last batch of one example where BatchNorm cannot normalise it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _OneValueError(Exception):
    """A layer was given one value per channel."""


def require_normalisable(
    model: nn.Module, shape: Sequence[int], examples: int, batch_size: int
) -> None:
    """Refuse, before any work, a training whose first epoch would end in BatchNorm's error.

    One example is enough for a BatchNorm that sees several pixels of it, so the check runs a copy
    of the network.

    Args:
        shape: shape of one example.

    Raises:
        ValueError: the last batch has one example and a BatchNorm sees one value per channel.
    """
    names = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not names or (examples - 1) % batch_size != 0:
        return
    layer = _starved(model, shape)
    if layer is not None:
        raise ValueError(
            f"train.batch_size: {batch_size} leaves a last batch of one of {examples} training "
            f"examples, and {layer} (BatchNorm) then sees one value per channel: use another "
            f"train.batch_size, or data.limit: {examples - 1}"
        )


def _starved(model: nn.Module, shape: Sequence[int]) -> str | None:
    """The first BatchNorm that sees one value per channel of a single example."""
    probe = deepcopy(model).train()

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                raise _OneValueError(name)

        return hook

    for name, module in probe.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(look(name))
    example = torch.zeros(1, *shape, device=next(model.parameters()).device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            probe(example)
        except _OneValueError as found:
            return str(found)
    return None
