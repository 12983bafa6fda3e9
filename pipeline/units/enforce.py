"""Masking: the removed units of a plan are zero, the shapes stay."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.units.cuts import Alive, dropped, removals
from pipeline.units.experts.routers import mask_router
from pipeline.units.groups import ChannelGroup, Granularity, Units
from pipeline.units.plan import PruningPlan


class Enforcer:
    """A plan compiled for one model: `apply()` costs one multi-tensor multiplication and never
    waits for the device.

    Structured plans zero the zero-invariant part of every removed channel: weights, biases, scale
    and shift of BatchNorm and kin. Buffers, running statistics among them, are left alone. Of an
    expert all weights are zeroed, and its router never chooses it again (a hook sets its logit to
    minus infinity: an expert of zeros would still be chosen).

    Raises:
        ValueError: the plan does not fit `units` or the model.
    """

    def __init__(self, plan: PruningPlan, model: nn.Module, units: Units) -> None:
        parameters = dict(model.named_parameters())
        if plan.granularity is Granularity.UNSTRUCTURED:
            masks = _weight_masks(plan, parameters)
        else:
            masks = _channel_masks(plan, units, parameters)
            for group, keep in _experts(plan, units):
                mask_router(model, (s.tensor for s in group.slices if s.role == "router"), keep)
        self._tensors = [parameters[name] for name in masks]
        self._masks = [m.to(parameters[n].device, parameters[n].dtype) for n, m in masks.items()]

    @torch.no_grad()
    def apply(self) -> None:
        """Multiply the masks in."""
        if self._tensors:
            torch._foreach_mul_(self._tensors, self._masks)


def enforce(plan: PruningPlan, model: nn.Module, units: Units) -> None:
    """Zero what the plan removes, once."""
    Enforcer(plan, model, units).apply()


def _weight_masks(plan: PruningPlan, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    for name, mask in plan.keep.items():
        if name not in parameters:
            raise ValueError(f"plan: the model has no parameter {name!r}")
        if mask.shape != parameters[name].shape:
            want, got = tuple(parameters[name].shape), tuple(mask.shape)
            raise ValueError(f"plan: mask of {name!r} has shape {got}, its weight {want}")
    return {name: mask for name, mask in plan.keep.items() if not mask.all()}


def _channel_masks(
    plan: PruningPlan, units: Units, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Masks that broadcast over the parameters of all zero-invariant parts."""
    masks = removals(plan, units)
    alive: Alive = {}
    for group in units.groups:
        if group.name not in masks:
            continue
        gone = ~masks[group.name]
        for s in group.slices if group.kind == "expert" else group.zig:
            if s.tensor not in parameters:
                continue
            dims = alive.setdefault(s.tensor, {})
            size = parameters[s.tensor].shape[s.dim]
            kept = dims.setdefault(s.dim, torch.ones(size, dtype=torch.bool))
            kept[s.index[gone].flatten()] = False
    found = {name: _broadcast(parameters[name].ndim, dims) for name, dims in alive.items()}
    gone = dropped(units, masks, parameters)
    return found | {n: torch.zeros((1,) * parameters[n].ndim, dtype=torch.bool) for n in gone}


def _experts(plan: PruningPlan, units: Units) -> Iterator[tuple[ChannelGroup, Tensor]]:
    masks = removals(plan, units)
    for group in units.groups:
        if group.kind == "expert" and group.name in masks:
            yield group, masks[group.name]


def _broadcast(ndim: int, dims: dict[int, Tensor]) -> Tensor:
    mask = torch.ones((1,) * ndim, dtype=torch.bool)
    for dim, kept in dims.items():
        mask = mask & kept.view([-1 if d == dim else 1 for d in range(ndim)])
    return mask
