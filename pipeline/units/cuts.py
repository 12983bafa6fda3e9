"""Positions of each tensor that survive a structured plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.plan import PruningPlan

BLOCK = 1 << 20
"""Bytes that fit in a core's cache."""

Alive = dict[str, dict[int, Tensor]]
"""tensor -> dimension -> bool per position; what is absent is kept whole."""


def removals(plan: PruningPlan, units: Units) -> dict[str, Tensor]:
    """Masks of the groups that lose a channel.

    Raises:
        ValueError: the plan is not structured, names no group of this network, has the wrong size,
            removes channels of a group that is not prunable, or leaves a router too few experts.
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
        if (kept := int(mask.sum())) < group.least:
            raise ValueError(
                f"plan: {name!r} would keep {kept} of {group.size} experts, and its router picks "
                f"{group.least} of them: keep at least that many"
            )
        masks[name] = mask
    return masks


def alive_positions(
    units: Units, masks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Alive:
    """Positions that survive when every group is pruned by its mask."""
    alive: Alive = {}
    for group in units.groups:
        if group.name not in masks:
            continue
        gone = np.flatnonzero(~masks[group.name].numpy())
        for s in group.slices:
            dims = alive.setdefault(s.tensor, {})
            if s.dim not in dims:
                dims[s.dim] = torch.ones(shapes[s.tensor][s.dim], dtype=torch.bool)
            dims[s.dim].numpy()[s.index.cpu().numpy().take(gone, axis=0).ravel()] = False
    return alive


def with_branches(units: Units, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where a branch goes, its own channels go with it."""
    gone = {
        s.tensor for g in units.groups if g.kind == "branch" and g.name in masks for s in g.slices
    }
    inside = {
        g.name: torch.zeros(g.size, dtype=torch.bool)
        for g in units.groups
        if gone and g.prunable and g.kind == "channel" and all(s.tensor in gone for s in g.slices)
    }
    return {**masks, **inside}


def dropped(units: Units, masks: Mapping[str, Tensor], names: Iterable[str]) -> set[str]:
    """Tensors of experts that are modules of a list and go with their entry."""
    listed = [(g, masks[g.name]) for g in units.groups if g.lists and g.name in masks]
    return {
        name
        for name in (names if listed else ())
        for group, keep in listed
        if (unit := group.unit_of(name)) is not None and not keep[unit]
    }


def cut(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The surviving positions of `tensor`, dimension by dimension."""
    if tensor.is_meta:
        shape = list(tensor.shape)
        for dim, alive in dims.items():
            shape[dim] = int(np.count_nonzero(alive.numpy()))
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    kept = {}
    for dim in sorted(dims):
        positions = torch.from_numpy(np.flatnonzero(dims[dim].numpy()))
        if positions.numel() < dims[dim].numel():
            kept[dim] = positions.to(tensor.device)
    large = tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() > BLOCK
    if large and len(kept) > 1 and 0 in kept:
        return _cut_by_blocks(tensor.detach(), kept)
    for dim, positions in kept.items():
        tensor = tensor.index_select(dim, positions)
    return tensor


def _cut_by_blocks(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Cut block by block through a buffer that stays in cache: no second large tensor."""
    *between, last = [dim for dim in kept if dim != 0]
    shape = [kept[d].numel() if d in kept else n for d, n in enumerate(tensor.shape)]
    result = tensor.new_empty(shape)
    rows = max(1, BLOCK // (tensor[0].numel() * tensor.element_size()))
    buffer = tensor.new_empty((rows, *tensor.shape[1:]))
    for start, part in enumerate(kept[0].split(rows)):
        block = torch.index_select(tensor, 0, part, out=buffer[: part.numel()])
        for dim in between:
            block = block.index_select(dim, kept[dim])
        target = result[start * rows : start * rows + part.numel()]
        torch.index_select(block, last, kept[last], out=target)
    return result


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
