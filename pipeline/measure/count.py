"""Parameters and multiply-accumulates (MACs) of a network, dense and non-zero.

MACs are those of one forward of the example as given; with one example they are per example.
docs/counting.md says what is counted and compares other counters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.measure.kept import KeptChannels, KeptWeights
from pipeline.measure.reads import record
from pipeline.measure.sources import Reading, Source
from pipeline.units.constant import folded
from pipeline.units.cuts import dropped, removals, with_branches, with_one_left
from pipeline.units.groups import Granularity, Units
from pipeline.units.leftovers.fold import new_biases
from pipeline.units.modules import tensors_of
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink


@dataclass(frozen=True)
class LayerCount:
    """One module with weights or MACs of its own; its children are counted for themselves.

    Attributes:
        macs: multiply-accumulates of the operators that its own forward calls.
        macs_nonzero: those of them whose weight is not zero. What counts is the tensor that the
            operator reads, whatever it is called: a slice of packed projections, a masked weight.
            A product of two activations (attention scores) counts whole.
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
        """The same, without the parameters of layers with one of these words in their name."""
        out = [x for x in self.layers if any(word in x.name for word in words)]
        return replace(
            self,
            params=self.params - sum(x.params for x in out),
            params_nonzero=self.params_nonzero - sum(x.params_nonzero for x in out),
        )


class _Stored:
    """The numbers of a network; each is looked at once."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = tensors_of(model)
        self._nonzero: dict[int, int] = {}

    def size(self, name: str) -> int:
        return int(self.tensors[name].numel())

    def nonzero(self, name: str) -> int:
        return self.nonzero_of(self.tensors[name])

    def nonzero_of(self, x: Tensor) -> int:
        if id(x) not in self._nonzero:
            self._nonzero[id(x)] = int(torch.count_nonzero(x))
        return self._nonzero[id(x)]

    @torch.no_grad()
    def entries(self, source: Source) -> Tensor:
        return source.evaluate(self.tensors)


def count(model: nn.Module, example: Any) -> Counts:
    """Parameters and MACs of `model`; shapes only, no arithmetic, where the network allows it.

    Parameters shared by several layers are counted once, with the first.

    Returns:
        MACs of one forward of `example`. An operator without a formula counts as 0 and is named in
        the log (`espalier.count`), once per process.
    """
    own: dict[str, list[Reading]] = {}
    for reading in record(model, example).readings:
        own.setdefault(reading.path, []).append(reading)
    stored, seen = _Stored(model), set[int]()
    layers = []
    for path, layer in model.named_modules():
        params = [p for p in layer.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in params)
        read = own.get(path, ())
        macs = sum(x.macs for x in read)
        if params or macs:
            total = sum(p.numel() for p in params)
            nonzero = sum(stored.nonzero_of(p) for p in params)
            left = sum(x.left(stored) for x in read)
            layers.append(LayerCount(path, total, nonzero, macs, left))
    return Counts(
        sum(x.params for x in layers),
        sum(x.params_nonzero for x in layers),
        sum(x.macs for x in layers),
        sum(x.macs_nonzero for x in layers),
        tuple(layers),
    )


@dataclass(frozen=True)
class _Layer:
    """A module, its parameters by local name, and what its own operators read."""

    module: nn.Module
    names: dict[str, str]
    readings: list[Reading]


class MacsModel:
    """Parameters and MACs of any plan, from one count of the dense model and arithmetic.

    A structured plan costs what `count` says of the shrunk network, an unstructured one what it
    says of the parameters and MACs that are not masked. A weight that is computed in the forward
    (torch's pruning masks, parametrizations) counts with the zeros that it has now.
    """

    def __init__(self, model: nn.Module, example: Any, units: Units) -> None:
        self.units = units
        lists = any(g.routed and g.lists for g in units.groups)
        self.original = (copy.deepcopy(model), example) if lists else None
        tensors = tensors_of(model)
        first = {id(x): name for name, x in reversed(tensors.items())}
        self.sizes = {name: tuple(x.shape) for name, x in tensors.items()}
        self.shapes = {first[id(p)]: tuple(p.shape) for p in model.parameters()}
        self.cuts: dict[str, dict[int, list[tuple[str, int]]]] = {}
        for group in units.prunable:
            for s in group.slices:
                if s.tensor in self.shapes:
                    dims = self.cuts.setdefault(s.tensor, {})
                    dims.setdefault(s.dim, []).append((group.name, s.index.shape[1]))
        recorder = record(model, example)
        self.products = {id(recorder.products[n]): shares for n, shares in units.products.items()}
        own: dict[str, list[Reading]] = {}
        for reading in recorder.readings:
            own.setdefault(reading.path, []).append(reading)
        stored = _Stored(model)
        self.computed = {
            id(source): stored.entries(source) != 0
            for reading in recorder.readings
            for source in reading.stored
            if not source.moved
        }
        self.layers = [
            _Layer(module, {k: first[id(p)] for k, p in _local(module)}, own.get(path, []))
            for path, module in model.named_modules()
        ]

    def macs(self, plan: PruningPlan) -> int:
        """MACs that remain."""
        return self._cost(plan)[1]

    def params(self, plan: PruningPlan) -> int:
        """Parameters that remain."""
        return self._cost(plan)[0]

    def _cost(self, plan: PruningPlan) -> tuple[int, int]:
        if plan.granularity is Granularity.UNSTRUCTURED:
            weights = KeptWeights(self.sizes, self.computed, plan)
            return self._sum(weights, {}, {}, weights.numbers)
        masks = with_branches(self.units, removals(plan, self.units))
        if self.original is not None and self._rerouted(masks):
            small, example = copy.deepcopy(self.original)
            shrink(plan, small, self.units)
            counted = count(small, example)
            return counted.params, counted.macs
        removed = {name: mask.numel() - int(mask.sum()) for name, mask in masks.items()}
        dead = {name for name, mask in masks.items() if not mask.any()}
        # A dead group keeps one placeholder channel where its layers do not vanish.
        left = {name: n - (name in dead) for name, n in removed.items()}
        gone = dropped(self.units, masks, self.shapes)
        numbers = {name: math.prod(self._kept_shape(name, left)) for name in self.cuts}
        numbers |= dict.fromkeys(gone, 0)
        kept = self._running(masks, left, gone)
        params, macs = self._sum(kept, left, removed if dead else {}, numbers)
        return params + new_biases(self.units, masks, self.sizes, gone), macs

    def _rerouted(self, masks: Mapping[str, Tensor]) -> bool:
        """Whether experts of a list go while others in it are narrowed: only a forward says which
        of the widths then runs how often."""
        cut_groups = [g for g in self.units.groups if g.name in masks and not masks[g.name].all()]
        lists = [g for g in cut_groups if g.routed and g.lists]
        cut = (s.tensor for g in cut_groups for s in g.slices)
        return bool(lists) and any(g.unit_of(name) is not None for name in cut for g in lists)

    def _running(
        self, masks: dict[str, Tensor], left: dict[str, int], gone: set[str]
    ) -> KeptChannels:
        """What a forward reads: where experts are routed, those left run for those that went."""
        routed = {g.name: g for g in self.units.groups if g.routed and g.name in masks}
        stay = {n: k for n, k in left.items() if n not in routed}
        members = {s.tensor for g in routed.values() for s in g.slices if s.role == "member"}
        numbers = {
            name: math.prod(self._kept_shape(name, stay if name in members else left))
            for name in self.cuts
        }
        idle = (n for n in gone if all(g.unit_of(n) is None for g in routed.values()))
        numbers |= dict.fromkeys(idle, 0)
        alive = {n: m for n, m in with_one_left(masks).items() if n not in routed}
        return KeptChannels(self.sizes, self.computed, numbers, alive, self.units)

    def _kept_shape(self, tensor: str, removed: dict[str, int]) -> list[int]:
        shape = list(self.shapes[tensor])
        for dim, parts in self.cuts[tensor].items():
            shape[dim] -= sum(removed.get(group, 0) * k for group, k in parts)
        return [max(n, 0) for n in shape]

    def _sum(
        self,
        kept: KeptWeights | KeptChannels,
        left: dict[str, int],
        removed: dict[str, int],
        numbers: Mapping[str, int],
    ) -> tuple[int, int]:
        """Parameters and MACs of all layers; `removed` is empty unless layers may vanish;
        `numbers`: entries left of parameters that lose some."""
        present: set[str] = set()
        macs = 0
        for layer in self.layers:
            names = set(layer.names.values())
            if removed and (gone := self._vanished(layer, removed)) is not None:
                present |= names - gone
                continue
            present |= names
            macs += sum(self._macs(reading, kept, left) for reading in layer.readings)
        return sum(numbers.get(name, kept.size(name)) for name in present), macs

    def _macs(
        self, reading: Reading, kept: KeptWeights | KeptChannels, left: dict[str, int]
    ) -> int:
        shares = self.products.get(id(reading))
        if not shares or not left:
            return reading.left(kept)
        return (
            reading.macs
            * math.prod(s.left(left) for s in shares)
            // math.prod(s.size for s in shares)
        )  # a product of activations

    def _vanished(self, layer: _Layer, removed: dict[str, int]) -> set[str] | None:
        """Parameters that go when the layer is folded into a constant; None when it is not."""
        dead = {}
        for key, name in layer.names.items():
            if name in self.cuts:
                shape = self._kept_shape(name, removed)
                dead[key] = {d for d in self.cuts[name] if shape[d] == 0}
        local = {key: dims for key, dims in dead.items() if dims}
        replaceable = local and self.units.read_elsewhere.isdisjoint(layer.names.values())
        stand_in = folded(layer.module, local) if replaceable else None
        if stand_in is None:
            return None
        stay = {key for key, _ in stand_in.named_parameters()}
        return {name for key, name in layer.names.items() if key not in stay}


def _local(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, p) for key, p in module._parameters.items() if p is not None]


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
