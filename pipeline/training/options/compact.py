"""`train.compact`: run forward and backward passes without permanently zero channels.

HSPG, DHSPG and HESSO zero channels long before the training ends. With this option the passes run
through a smaller network. Each pass gathers its weights from the full ones; gradients are scattered
back, zero elsewhere. Optimizer, hooks, masks, checkpoints and plans see the full network. ADR 0010
has the measured gain.

No output changes. A removed channel gets no gradient, and its running statistics are not updated.
In the full network its bias has a gradient, which `clip_norm` counts, unless an activation that is
flat at zero, like ReLU, follows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.units.cuts import alive_positions, removals, with_one_left
from pipeline.units.groups import Granularity, Units
from pipeline.units.leftovers.fold import groups_with_leftovers
from pipeline.units.modules import tensors_of
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink

WORTH = 0.05  # smallest fraction of channels to remove that justifies a smaller network

Places = Mapping[int, Tensor]
"""dimension -> its remaining positions."""


class Compact(nn.Module):
    """Runs `model` without the channels given to `remove`.

    Attributes:
        plan: the channels removed at present; None = none.
    """

    def __init__(self, model: nn.Module, units: Units) -> None:
        super().__init__()
        self.model, self.units = model, units
        self.plan: PruningPlan | None = None
        self.small: nn.Module | None = None
        self._places: dict[int, Places] = {}  # by identity of the full network's tensors

    def remove(self, plan: PruningPlan | None) -> None:
        """From now on compute only what `plan` keeps. What it removes must be permanently zero. A
        group that would lose all its channels retains one."""
        if plan is None or plan.sparsity < WORTH:
            self.plan = self.small = None
            return
        if self.plan is not None and plan.digest() == self.plan.digest():
            return
        # A smaller RMS norm would need rescaled weights, and a reader of constants another bias, so
        # groups that pass one are not shrunk.
        whole = {name for norm in self.units.norms for name in norm.share.per_unit}
        whole |= groups_with_leftovers(self.units)
        removed = {n: m for n, m in removals(plan, self.units).items() if n not in whole}
        masks = with_one_left(removed)
        named = tensors_of(self.model)
        shapes = {name: tuple(x.shape) for name, x in named.items()}
        alive = alive_positions(self.units, masks, shapes)
        places = {id(named[name]): _places(dims, named[name]) for name, dims in alive.items()}
        self._places = {tensor: found for tensor, found in places.items() if found}
        self.small = copy.deepcopy(self.model)
        shrink(PruningPlan(Granularity.STRUCTURED, masks), self.small, self.units)
        self.plan = plan

    def held(self) -> dict[str, Any]:
        """State for a checkpoint. Inside an epoch more channels may be zero than are removed."""
        return {} if self.plan is None else {"compact": dict(self.plan.keep)}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Inverse of `held`."""
        keep = checkpoint.get("compact")
        self.remove(None if keep is None else PruningPlan(Granularity.STRUCTURED, keep))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.small is None:
            return self.model(*args, **kwargs)
        self.small.train(self.model.training)
        buffers = dict(self.model.named_buffers())
        full = {**dict(self.model.named_parameters()), **buffers}
        picked = {name: self._pick(x) for name, x in full.items()}
        result = functional_call(self.small, picked, args, kwargs)
        for name, buffer in buffers.items():
            if self.model.training and id(buffer) in self._places:  # running statistics
                _put(buffer, self._places[id(buffer)], picked[name])
        return result

    def _pick(self, tensor: Tensor) -> Tensor:
        places = self._places.get(id(tensor))
        if places is None:
            return tensor
        return _Picked.apply(tensor, places) if tensor.requires_grad else _cut(tensor, places)


def _places(alive: Mapping[int, Tensor], tensor: Tensor) -> Places:
    kept = {dim: mask.nonzero().flatten() for dim, mask in sorted(alive.items())}
    return {d: at.to(tensor.device) for d, at in kept.items() if at.numel() < tensor.shape[d]}


def _cut(tensor: Tensor, places: Places) -> Tensor:
    for dim, positions in places.items():
        tensor = tensor.index_select(dim, positions)
    return tensor


@torch.no_grad()
def _put(tensor: Tensor, places: Places, values: Tensor) -> None:
    """Write `values` to the positions they were selected from; other positions are unchanged."""
    (dim, positions), *others = places.items()
    if others:
        rows = tensor.index_select(dim, positions)
        _put(rows, dict(others), values)
        values = rows
    tensor.index_copy_(dim, positions, values)


class _Picked(torch.autograd.Function):
    """Select the remaining positions; the gradient is zero elsewhere, in the tensor's layout."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Places) -> Tensor:
        ctx.full, ctx.places = tensor, places
        return _cut(tensor.detach(), places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        full = torch.zeros_like(ctx.full)
        _put(full, ctx.places, gradient.to(full.dtype))
        return full, None
