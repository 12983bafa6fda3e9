"""Surgery: remove the channels that a plan prunes and leave an ordinary, smaller network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pipeline.units.constant import folded
from pipeline.units.cuts import (
    Alive,
    alive_positions,
    cut,
    dead_groups,
    removals,
    with_branches,
    with_one_left,
)
from pipeline.units.enforce import enforce
from pipeline.units.experts.routers import unmask
from pipeline.units.groups import Granularity, Units
from pipeline.units.leftovers.fold import fold_leftovers
from pipeline.units.modules import drop_entries, own_shapes, set_size, sizes, tensors_of
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import rescale

SAVE = "save_pretrained"


def apply_plan(plan: PruningPlan, model: nn.Module, units: Units) -> None:
    """Mask an unstructured plan, cut a structured one."""
    if plan.granularity is Granularity.UNSTRUCTURED:
        enforce(plan, model, units)
    else:
        shrink(plan, model, units)


@torch.no_grad()
def shrink(plan: PruningPlan, model: nn.Module, units: Units) -> None:
    """Remove channels from `model` in place.

    In evaluation mode its outputs are those of the masked model. The structure that results
    depends on `plan` and `units` only: a freshly built model shrinks to the same keys and shapes.

    A group that loses all its channels keeps one, zero, as a placeholder, so that every topology
    stays exact; layers that then only make zeros, or only read zeros, become `Constant`s and cost
    nothing.

    Args:
        units: of the model as it is now, dense.

    Raises:
        ValueError: the plan does not fit the units, or the units do not fit the model.
    """
    masks = with_branches(units, removals(plan, units))
    shapes = {name: tuple(x.shape) for name, x in tensors_of(model).items()}
    _check_fit(units, masks, shapes)
    dead = dead_groups(units, masks)
    enforce(PruningPlan(plan.granularity, {g.name: masks[g.name] for g in dead}), model, units)
    alive = alive_positions(units, with_one_left(masks), shapes)
    if units.leftovers:
        fold_leftovers(model, units.leftovers, alive_positions(units, masks, shapes), alive)
    _replace_tensors(model, alive)
    left = {name: int((~mask).sum()) for name, mask in with_one_left(masks).items()}
    for attribute in units.attributes:
        module = model.get_submodule(attribute.module)
        set_size(module, attribute.name, attribute.share.left(left))
    _rescale(model, units, left)
    if dead:
        _fold(model, alive_positions(units, masks, shapes), units.read_elsewhere)
    _drop_experts(model, units, masks)
    if shapes != {name: tuple(x.shape) for name, x in tensors_of(model).items()}:
        _refuse_saving(model)


def _rescale(model: nn.Module, units: Units, left: dict[str, int]) -> None:
    """Norms by a mean; a weight that several of them share once."""
    scaled: set[int] = set()
    for norm in units.norms:
        if kept := norm.share.left(left):
            layer = model.get_submodule(norm.module)
            weight = id(layer._parameters[norm.kind.weight])
            rescale(layer, norm.kind, norm.share.size / kept, weight not in scaled)
            scaled.add(weight)


def _drop_experts(model: nn.Module, units: Units, masks: dict[str, Tensor]) -> None:
    """Experts that are modules of a list; routers are masked no more."""
    for group in units.groups:
        if group.kind == "expert" and group.name in masks:
            for path in group.lists:
                drop_entries(model.get_submodule(path), masks[group.name])
            for s in group.slices:
                unmask(model.get_submodule(s.tensor.rpartition(".")[0]))


def _refuse_saving(model: nn.Module) -> None:
    """Networks of `transformers` save a config.json of the dense sizes, which no loader can fit to
    the cut weights: let `save_pretrained` say so, not a `from_pretrained` elsewhere."""
    for module in model.modules():
        if callable(getattr(module, SAVE, None)):
            setattr(module, SAVE, partial(_not_by_its_config, type(module).__name__))


def _not_by_its_config(name: str, *_: object, **__: object) -> None:
    raise ValueError(
        f"{SAVE}: this {name} was pruned, and its config.json would state the sizes before, so "
        "that from_pretrained could not load it: write it with save_pruned (or save_decoder) of "
        "pipeline.api, or deliver it by a study (docs/api.md)"
    )


def _check_fit(units: Units, masks: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for group in units.groups:
        for s in group.slices if group.name in masks else ():
            if s.tensor not in shapes or int(s.index.max()) >= shapes[s.tensor][s.dim]:
                raise ValueError(
                    f"group {group.name!r} speaks of {s.tensor}, dimension {s.dim}, which this "
                    "model has not (was it already shrunk? trace it again)"
                )


def _replace_tensors(model: nn.Module, alive: Alive) -> None:
    """Cut every tensor once, keep shared ones shared, update the layers' size attributes."""
    named = tensors_of(model)
    new = {id(named[name]): _like(named[name], cut(named[name], d)) for name, d in alive.items()}
    for layer in model.modules():
        before = own_shapes(layer)
        for store in (layer._parameters, layer._buffers):
            for key, x in store.items():
                if x is not None and id(x) in new:
                    store[key] = new[id(x)]  # type: ignore[assignment]
        after = own_shapes(layer)
        if after != before:
            for key, value in sizes(layer, after).items():
                setattr(layer, key, value)


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _fold(model: nn.Module, alive: Alive, read_elsewhere: frozenset[str]) -> None:
    """Replace layers around wholly removed groups, under every name they have."""
    dead = {
        name: {dim for dim, kept in dims.items() if not kept.any()} for name, dims in alive.items()
    }
    first: dict[int, str] = {}
    for name, x in tensors_of(model).items():
        first.setdefault(id(x), name)
    stand_ins: dict[int, nn.Module] = {}
    for layer in model.modules():
        own = {**layer._parameters, **layer._buffers}
        names = {key: first[id(x)] for key, x in own.items() if x is not None}
        local = {key: dead[n] for key, n in names.items() if dead.get(n)}
        replaceable = local and read_elsewhere.isdisjoint(names.values())
        stand_in = folded(layer, local) if replaceable else None
        if stand_in is not None:
            stand_ins[id(layer)] = stand_in.train(layer.training)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and id(child) in stand_ins:
                parent._modules[key] = stand_ins[id(child)]
