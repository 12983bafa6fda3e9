"""Surgery on the layers that read channels with a leftover: their biases take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor, nn

from pipeline.units.cuts import Alive, alive_positions, with_one_left
from pipeline.units.groups import Units
from pipeline.units.leftovers.formula import Leftover
from pipeline.units.modules import tensors_of


@torch.no_grad()
def fold_leftovers(
    model: nn.Module, leftovers: Sequence[Leftover], alive: Alive, left: Alive
) -> None:
    """In place, before any tensor is cut.

    Args:
        alive: positions that survive.
        left: the same with the placeholders of groups that lose everything; positions of biases
            that are made here are added to it.
    """
    tensors = tensors_of(model)
    for one in leftovers:
        lost = one.lost(alive.get(one.weight, {}))
        if not bool(lost.any()):
            continue
        weight = tensors[one.weight]
        gone = lost.nonzero()[:, 0].to(weight.device)
        added = _added(one, tensors, gone)
        weight.index_fill_(one.dim, gone, 0)  # a placeholder must not give it once more
        if one.bias is not None:
            tensors[one.bias].add_(added.to(tensors[one.bias].dtype))
            continue
        bias = nn.Parameter(added.to(weight.dtype), weight.requires_grad)
        model.get_submodule(one.layer).register_parameter("bias", bias)
        if one.outer in left.get(one.weight, {}):
            left[f"{one.layer}.bias" if one.layer else "bias"] = {0: left[one.weight][one.outer]}


def groups_with_leftovers(units: Units) -> set[str]:
    """Names of the groups of which a channel leaves something."""
    read = {(one.weight, one.dim): one.which >= 0 for one in units.leftovers}
    return {
        group.name
        for group in units.groups
        for s in group.slices
        if (s.tensor, s.dim) in read and bool(read[s.tensor, s.dim][s.index].any())
    }


def new_biases(
    units: Units,
    masks: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dropped: Set[str],
) -> int:
    """Entries of the biases that surgery makes where layers have none.

    Args:
        shapes: of all tensors, before.
        dropped: tensors that go as a whole.
    """
    makers = [x for x in units.leftovers if x.bias is None and x.weight not in dropped]
    alive, left = (
        alive_positions(units, m, shapes) if makers else {} for m in (masks, with_one_left(masks))
    )
    made = 0
    for one in makers:
        dims = alive.get(one.weight, {})
        if one.lost(dims).any():
            outer = dims.get(one.outer)
            if outer is None:
                made += shapes[one.weight][one.outer]
            elif outer.any():  # else the layer makes zeros, and has no bias
                made += int(left[one.weight][one.outer].sum())
    return made


def _added(one: Leftover, tensors: Mapping[str, Tensor], gone: Tensor) -> Tensor:
    """What the inputs that go gave to every output, in at least float32."""
    weight = tensors[one.weight]
    part = weight.index_select(one.dim, gone)
    part = part.to(torch.promote_types(weight.dtype, torch.float32))
    numbers = torch.cat([f.evaluate(tensors, part) for f in one.formulas])
    each = numbers.index_select(0, one.which.to(weight.device).index_select(0, gone))
    shape = [-1 if d == one.dim else 1 for d in range(weight.ndim)]
    others = [d for d in range(weight.ndim) if d != one.outer]
    return (part * each.view(shape)).sum(others)
