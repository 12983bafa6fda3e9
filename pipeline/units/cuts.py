"""Which positions of which tensors a structured plan leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.plan import PruningPlan

Alive = dict[str, dict[int, Tensor]]
"""tensor -> dimension -> bool per position; what is not named is whole."""


def removals(plan: PruningPlan, units: Units) -> dict[str, Tensor]:
    """Masks of the groups that lose a channel.

    Raises:
        ValueError: the plan is not structured, names no group of this network, has the wrong size,
            or removes channels of a group that is not prunable.
    """
    if plan.granularity is not Granularity.STRUCTURED:
        raise ValueError("surgery needs a structured plan; an unstructured one is only enforced")
    groups = units.by_name()
    masks = {}
    for name, mask in plan.keep.items():
        group = groups.get(name)
        if group is None:
            known = ", ".join(g.name for g in units.prunable)
            raise ValueError(f"plan: no channel group {name!r} (prunable groups: {known})")
        if mask.numel() != group.size:
            raise ValueError(f"plan: {name!r} has {group.size} channels, not {mask.numel()}")
        if mask.all():
            continue
        if not group.prunable:
            raise ValueError(f"plan: group {name!r} is not prunable: {group.reason}")
        masks[name] = mask
    return masks


def alive_positions(
    units: Units, masks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Alive:
    """Positions that survive when every group in `masks` keeps what its mask says."""
    alive: Alive = {}
    for group in units.groups:
        if group.name not in masks:
            continue
        gone = ~masks[group.name]
        for s in group.slices:
            dims = alive.setdefault(s.tensor, {})
            if s.dim not in dims:
                dims[s.dim] = torch.ones(shapes[s.tensor][s.dim], dtype=torch.bool)
            dims[s.dim][s.index[gone].flatten()] = False
    return alive


def cut(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The surviving positions of `tensor`, dimension by dimension."""
    for dim, alive in dims.items():
        if not alive.all():
            tensor = tensor.index_select(dim, alive.nonzero().flatten().to(tensor.device))
    return tensor


def with_one_left(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A group that loses everything keeps its first channel, as a placeholder."""
    result = {}
    for name, mask in masks.items():
        result[name] = mask.clone()
        result[name][0] |= not mask.any()
    return result


def dead_groups(units: Units, masks: Mapping[str, Tensor]) -> tuple[ChannelGroup, ...]:
    """Groups of which nothing is kept."""
    return tuple(g for g in units.groups if g.name in masks and not masks[g.name].any())
