"""The smaller network: stand-ins without some channels, and the sizes that its layers say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.units.cuts import alive_positions, cut
from pipeline.units.groups import Units
from pipeline.units.modules import own_shapes, sizes
from pipeline.units.trace.book import LARGE
from pipeline.units.trace.forward import Forward
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import Shadow

Keep = NDArray[np.bool_]
Chosen = frozenset[str] | None
"""Names of the groups that the smaller forward cuts; None for all."""

Changes = list[tuple[nn.Module, dict[str, Any]]]


@dataclass(frozen=True)
class Smaller:
    """A smaller network.

    Attributes:
        tensors: stand-ins by name.
        keep: per id: is it kept?
        changed: sizes that its layers say.
        removed: how many units of every group it lost.
        sizes: of the tensors that are smaller.
        kept: sizes left along the dimensions of a shadow, by the id of its ids.
    """

    tensors: dict[str, Tensor]
    keep: Keep
    changed: Changes
    removed: dict[str, int]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[int, dict[int, int]] = field(default_factory=dict)


def smaller(
    forward: Forward, grouping: Grouping, chosen: Chosen, places: dict[int, int]
) -> Smaller:
    """Keep a different part of every chosen group that can be pruned.

    Two channels stay where there are three: with a size of 1 torch takes other paths. The first
    channels stay, where some groups were chosen the last: a slice may begin behind either.

    Args:
        places: number of every group by its first class, which decides the part that it keeps; new
            groups are added. A group that stays as it is keeps its size from forward to forward.
    """
    removed, keep = {}, np.ones(grouping.labels.size, dtype=bool)
    for group, classes in zip(grouping.groups, grouping.classes, strict=True):
        place = places.setdefault(int(classes[0]), len(places))
        if group.prunable and group.size > 1 and (chosen is None or group.name in chosen):
            part = 0.3 + 0.6 * ((place * 0.618) % 1.0)  # also tells groups of four apart
            kept = min(group.size - 1, max(2, round(part * group.size)))
            removed[group.name] = group.size - kept
            keep[classes[kept:] if chosen is None else classes[: group.size - kept]] = False
    if not removed:
        return Smaller({}, keep, [], removed)
    own = forward.tensors()
    tensors = (_cut_shapes if forward.meta else _cut)(own, grouping, removed, chosen)
    changed = _changed(forward.layers, own, tensors)
    left = {name: tuple(x.shape) for name, x in tensors.items() if x is not own[name]}
    return Smaller(tensors, keep[grouping.labels], changed, removed, left)


def _cut_shapes(
    own: Mapping[str, Tensor], grouping: Grouping, removed: Mapping[str, int], chosen: Chosen
) -> dict[str, Tensor]:
    """On the meta device positions do not matter, only how many are left."""
    del chosen
    shapes: dict[str, list[int]] = {}
    for group in grouping.groups:
        if (lost := removed.get(group.name)) is not None:
            for s in group.slices:
                shape = shapes.get(s.tensor)
                if shape is None:
                    shape = shapes[s.tensor] = list(own[s.tensor].shape)
                shape[s.dim] -= lost * s.index.shape[1]
    made = {
        name: torch.empty(shape, dtype=own[name].dtype, device=own[name].device)
        for name, shape in shapes.items()
    }
    return _shared(own, made)


def _cut(
    own: Mapping[str, Tensor], grouping: Grouping, removed: Mapping[str, int], chosen: Chosen
) -> dict[str, Tensor]:
    masks = {}
    for group in grouping.groups:
        if (lost := removed.get(group.name)) is not None:
            mask = torch.arange(group.size) < group.size - lost
            masks[group.name] = mask if chosen is None else mask.flip(0)
    shapes = {name: tuple(x.shape) for name, x in own.items()}
    alive = alive_positions(Units((), grouping.groups), masks, shapes)
    return _shared(own, {name: cut(own[name], dims) for name, dims in alive.items()})


def _shared(own: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names that share a tensor keep sharing it."""
    instead = {id(own[name]): x for name, x in made.items()}
    return {name: instead.get(id(x), x) for name, x in own.items()}


def _changed(
    layers: Mapping[str, nn.Module], own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Changes:
    """Layers say the sizes of the stand-ins (groups of a depthwise convolution)."""
    changes = []
    paths = {name.rpartition(".")[0] for name, x in tensors.items() if x is not own[name]}
    for path, layer in ((p, m) for p, m in layers.items() if p in paths):
        prefix = f"{path}." if path else ""
        shapes = {n: tuple(tensors[prefix + n].shape) for n in own_shapes(layer)}
        changes.append((layer, sizes(layer, shapes)))
    return changes


def sizes_left(shadow: Shadow, keep: Keep) -> dict[int, int]:
    """Size of every dimension along which ids differ, once the removed ones are gone."""
    varying = shadow.varying
    if not varying:
        return {}
    if shadow.ids.size >= LARGE and keep[shadow.ids.min() : shadow.ids.max() + 1].all():
        return {}
    alive = keep[shadow.ids]
    if len(varying) == 1:
        return {varying[0]: int(np.count_nonzero(alive))}
    if alive.all():
        return {}
    axes = range(shadow.ndim)
    return {
        d: int(np.count_nonzero(alive.any(axis=tuple([i for i in axes if i != d]))))
        for d in varying
    }
