"""Saliency of units as pure functions: higher is kept longer, 0 is already removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.selection.criteria import (
    Batch,
    Loss,
    classification_loss,
    fpgm,
    scales_of,
    snip,
    taylor,
    taylor_groups,
)
from pipeline.selection.experts import expert_norms
from pipeline.units.groups import Granularity, Units

Parts = Literal["zig", "producer"]
KNOWN: Mapping[Granularity, tuple[str, ...]] = {
    Granularity.UNSTRUCTURED: ("magnitude", "random", "taylor", "snip"),
    Granularity.STRUCTURED: (
        "magnitude",
        "l1_norm",
        "l2_norm",
        "bn_scale",
        "fpgm",
        "random",
        "taylor",
    ),
}
NAMES = tuple(dict.fromkeys(name for names in KNOWN.values() for name in names))
FROM_DATA = ("taylor", "snip")
"""These need training batches."""


def compute(
    name: str,
    granularity: Granularity,
    model: nn.Module,
    units: Units,
    seed: int = 0,
    data: tuple[Sequence[Batch], Loss] = ((), classification_loss()),
) -> dict[str, Tensor]:
    """The saliency called `name`: "magnitude" is |w| per weight and the 2-norm per channel.

    Args:
        data: training batches and the loss on one, for the names in `FROM_DATA`.

    Raises:
        ValueError: unknown, not defined for this granularity, or without the batches it needs.
    """
    structured = granularity is Granularity.STRUCTURED
    if name not in KNOWN[granularity]:
        raise ValueError(
            f"no saliency {name!r} for {granularity.value} units "
            f"(known: {', '.join(KNOWN[granularity])})"
        )
    if name in FROM_DATA:
        return _from_data(name, structured, model, units, data)
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        return random(model, units, granularity, generator)
    if not structured:
        return magnitude(model, units)
    if name == "bn_scale":
        return bn_scale(model, units)
    if name == "fpgm":
        return fpgm(model, units.prunable)
    return group_norm(model, units, p=1 if name == "l1_norm" else 2)


def _from_data(
    name: str,
    structured: bool,
    model: nn.Module,
    units: Units,
    data: tuple[Sequence[Batch], Loss],
) -> dict[str, Tensor]:
    batches, loss = data
    if not batches:
        raise ValueError(f"saliency {name!r} needs training batches (saliency_batches)")
    if structured:
        return taylor_groups(model, units.prunable, batches, loss)
    criterion = snip if name == "snip" else taylor
    return criterion(model, units.weights, batches, loss)


@torch.no_grad()
def magnitude(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """|w| of every weight of convolution and linear layers."""
    state = model.state_dict()
    return {name: state[name].detach().abs() for name in units.weights}


@torch.no_grad()
def group_norm(
    model: nn.Module, units: Units, p: Literal[1, 2] = 2, parts: Parts = "zig"
) -> dict[str, Tensor]:
    """p-norm of each channel's parameters: its whole zero-invariant part, or its producers; of
    each expert's, all of them."""
    parameters = dict(model.named_parameters())
    scores = {}
    for group in units.prunable:
        if group.kind == "expert":
            scores[group.name] = expert_norms(group, parameters, p)
            continue
        total = torch.zeros(group.size, device=_device(model))
        for s in group.zig:
            if s.tensor in parameters and (parts == "zig" or s.role == "producer"):
                x = parameters[s.tensor].detach().float()
                per_position = x.movedim(s.dim, 0).reshape(x.shape[s.dim], -1).abs().pow(p).sum(1)
                total = total + per_position[s.index.to(x.device)].sum(1)
        scores[group.name] = total.pow(1 / p)
    return scores


@torch.no_grad()
def bn_scale(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """|gamma| of each channel, averaged over its batch norms if it passes several.

    Raises:
        ValueError: a prunable group has no batch norm with a scale.
    """
    scales = scales_of(model, units.prunable)
    for group in units.prunable:
        if group.name not in scales:
            raise ValueError(
                f"group {group.name!r} has no batch norm scale; use another saliency (l2_norm)"
            )
    return {group.name: scales[group.name].float().mean(1) for group in units.prunable}


def random(
    model: nn.Module, units: Units, granularity: Granularity, generator: torch.Generator
) -> dict[str, Tensor]:
    """Uniform in (0, 1]; `generator` is a CPU generator."""
    if granularity is Granularity.STRUCTURED:
        shapes = {g.name: (g.size,) for g in units.prunable}
    else:
        parameters = dict(model.named_parameters())
        shapes = {name: tuple(parameters[name].shape) for name in units.weights}
    device = _device(model)
    return {
        name: (1 - torch.rand(shape, generator=generator)).to(device)
        for name, shape in shapes.items()
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
