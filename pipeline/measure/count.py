"""Counting: parameters and multiply-accumulates (MACs) of convolutions, linear layers, attention.

MACs are those of one forward of the example as given; with one example they are per example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.units.constant import folded
from pipeline.units.cuts import removals
from pipeline.units.groups import Granularity, Share, Units
from pipeline.units.modules import tensors_of
from pipeline.units.plan import PruningPlan
from pipeline.units.trace.calls import PRODUCTS, operator_name
from pipeline.units.trace.forward import Forward, module_stack
from pipeline.units.trace.shapes import run

FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class LayerCount:
    """One module with weights or MACs of its own; its children are counted for themselves.

    `macs_nonzero` is `macs` times the fraction of the layer's weight that is not zero, rounded
    down; for a module without a weight (attention scores) it is `macs`.
    """

    name: str
    params: int
    params_nonzero: int
    macs: int
    macs_nonzero: int


@dataclass(frozen=True)
class Counts:
    """A network as it is: what is present and what of it is not zero."""

    params: int
    params_nonzero: int
    macs: int
    macs_nonzero: int
    layers: tuple[LayerCount, ...]

    def without(self, words: tuple[str, ...]) -> Counts:
        """The same, but for the parameters of layers with one of these words in their name."""
        out = [x for x in self.layers if any(word in x.name for word in words)]
        return replace(
            self,
            params=self.params - sum(x.params for x in out),
            params_nonzero=self.params_nonzero - sum(x.params_nonzero for x in out),
        )


def count(model: nn.Module, example: Any) -> Counts:
    """Parameters and MACs of `model`; shapes only, no arithmetic, where the network allows it.

    Parameters shared by several layers are counted once, with the first.
    """
    own = _counted(model, example).own
    seen: set[int] = set()
    layers = []
    for path, layer in model.named_modules():
        params = [p for p in layer.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in params)
        nonzero = sum(int(torch.count_nonzero(p)) for p in params)
        macs = own.get(path, 0)
        if params or macs:
            total = sum(p.numel() for p in params)
            layers.append(LayerCount(path, total, nonzero, macs, _nonzero_macs(layer, macs)))
    return Counts(
        sum(x.params for x in layers),
        sum(x.params_nonzero for x in layers),
        sum(x.macs for x in layers),
        sum(x.macs_nonzero for x in layers),
        tuple(layers),
    )


def _nonzero_macs(layer: nn.Module, macs: int) -> int:
    weight = layer._parameters.get("weight")
    if weight is None or not weight.numel():
        return macs
    return macs * int(torch.count_nonzero(weight)) // weight.numel()


class _Counter(TorchDispatchMode):
    """Adds up torch's own formulas, operator by operator, under the module that runs.

    Attributes:
        own: module path -> MACs of its own operators.
        products: the same for every matrix product, in order: (module path, MACs).
    """

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.own: dict[str, int] = {}
        self.products: list[tuple[str, int]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler at the first call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = run(func, args, kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            path = self.stack[-1] if self.stack else ""
            macs = int(formula(*args, **kwargs, out_val=out)) // FLOPS_PER_MAC
            self.own[path] = self.own.get(path, 0) + macs
            if operator_name(func) in PRODUCTS:
                self.products.append((path, macs))
        return out


def _counted(model: nn.Module, example: Any) -> _Counter:
    forward = Forward(model, example)
    for meta in (True, False):  # code that reads values cannot run on shapes alone
        forward.meta = meta
        with module_stack(forward.layers) as stack:
            counter = _Counter(stack)
            try:
                forward.run(forward.tensors(), counter)
            except Exception:
                if not meta:
                    raise
            else:
                break
    return counter


@dataclass(frozen=True)
class _Layer:
    """A layer's module, its parameters by local name, and the MACs of its weight."""

    module: nn.Module
    names: dict[str, str]
    weight: str | None
    macs: int


class MacsModel:
    """Parameters and MACs of any plan, from one count of the dense model and arithmetic.

    A structured plan costs what `count` says of the shrunk network, an unstructured one what it
    says of the parameters and MACs that are not masked (rounded down per layer).
    """

    def __init__(self, model: nn.Module, example: Any, units: Units) -> None:
        self.units = units
        tensors = tensors_of(model)
        first = {id(x): name for name, x in reversed(tensors.items())}
        unique = {first[id(p)]: p for p in model.parameters()}
        self.shapes = {name: tuple(p.shape) for name, p in unique.items()}
        self.cuts: dict[str, dict[int, list[tuple[str, int]]]] = {}
        for group in units.prunable:
            for s in group.slices:
                if s.tensor in self.shapes:
                    dims = self.cuts.setdefault(s.tensor, {})
                    dims.setdefault(s.dim, []).append((group.name, s.index.shape[1]))
        counted = _counted(model, example)
        own = dict(counted.own)
        self.products: list[tuple[int, tuple[Share, ...]]] = []
        for number, shares in units.products.items():
            path, macs = counted.products[number]
            own[path] -= macs
            self.products.append((macs, shares))
        self.layers = [
            _layer(module, {k: first[id(p)] for k, p in _local(module)}, own.get(path, 0), units)
            for path, module in model.named_modules()
        ]

    def macs(self, plan: PruningPlan) -> int:
        """MACs that remain."""
        return self._cost(plan)[1]

    def params(self, plan: PruningPlan) -> int:
        """Parameters that remain."""
        return self._cost(plan)[0]

    def _cost(self, plan: PruningPlan) -> tuple[int, int]:
        left: dict[str, int] = {}
        if plan.granularity is Granularity.UNSTRUCTURED:
            kept = {name: int(mask.sum()) for name, mask in plan.keep.items()}
            removed = {}
        else:
            masks = removals(plan, self.units)
            removed = {name: mask.numel() - int(mask.sum()) for name, mask in masks.items()}
            dead = {name for name, mask in masks.items() if not mask.any()}
            # A dead group keeps one placeholder channel where its layers do not vanish.
            left = {name: n - (name in dead) for name, n in removed.items()}
            kept = {name: self._numel(name, left) for name in self.cuts}
            removed = removed if dead else {}
        params, macs = self._sum(kept, removed)
        for whole, shares in self.products:
            macs += (
                whole * math.prod(s.left(left) for s in shares) // math.prod(s.size for s in shares)
            )
        return params, macs

    def _numel(self, tensor: str, removed: dict[str, int]) -> int:
        return math.prod(self._kept_shape(tensor, removed))

    def _kept_shape(self, tensor: str, removed: dict[str, int]) -> list[int]:
        shape = list(self.shapes[tensor])
        for dim, parts in self.cuts[tensor].items():
            shape[dim] -= sum(removed.get(group, 0) * k for group, k in parts)
        return shape

    def _sum(self, kept: dict[str, int], removed: dict[str, int]) -> tuple[int, int]:
        """Totals over all layers; `removed` is empty unless layers may vanish."""
        present: set[str] = set()
        macs = 0
        for layer in self.layers:
            names = set(layer.names.values())
            if removed and (gone := self._vanished(layer, removed)) is not None:
                present |= names - gone
                continue
            present |= names
            if layer.weight is None:
                macs += layer.macs
            else:
                size = math.prod(self.shapes[layer.weight])
                macs += layer.macs * kept.get(layer.weight, size) // size
        params = sum(kept.get(name, math.prod(self.shapes[name])) for name in present)
        return params, macs

    def _vanished(self, layer: _Layer, removed: dict[str, int]) -> set[str] | None:
        """Parameters that go when the layer is folded into a constant; None when it is not."""
        dead = {}
        for key, name in layer.names.items():
            if name in self.cuts:
                shape = self._kept_shape(name, removed)
                dead[key] = {d for d in self.cuts[name] if shape[d] == 0}
        local = {key: dims for key, dims in dead.items() if dims}
        stand_in = folded(layer.module, local) if local else None
        if stand_in is None:
            return None
        stay = {key for key, _ in stand_in.named_parameters()}
        return {name for key, name in layer.names.items() if key not in stay}


def _local(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, p) for key, p in module._parameters.items() if p is not None]


def _layer(module: nn.Module, names: dict[str, str], macs: int, units: Units) -> _Layer:
    """Its MACs are in proportion to its weight, where it has exactly one."""
    weights = [name for name in names.values() if name in units.weights]
    return _Layer(module, names, weights[0] if macs and len(weights) == 1 else None, macs)


def structured_cost(
    model: nn.Module,
    example: Any,
    units: Units,
    rule: Literal["macs", "params"],
    uncounted: tuple[str, ...] = (),
) -> Callable[[PruningPlan], float]:
    """The cost function that `select` needs for a `macs` or `params` target. `uncounted`: see
    `Counts.without`; nothing of these layers can be pruned."""
    costs = MacsModel(model, example, units)
    if rule == "macs":
        return costs.macs
    whole = count(model, example) if uncounted else None
    outside = whole.params - whole.without(uncounted).params if whole else 0
    return lambda plan: costs.params(plan) - outside
