"""Follow one forward pass: what every tensor carries, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.groups import Role
from pipeline.units.trace.book import Book
from pipeline.units.trace.shadow import FIXED, Ids, ParamView, Shadow, Value, along, uniform

INPUT = "the network's input"
CONSTANT = "a constant"


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples, mappings and dataclass-like objects."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)
    elif hasattr(tree, "values") and callable(tree.values):
        yield from tensors_in(list(tree.values()))
    elif hasattr(tree, "__dataclass_fields__"):
        yield from tensors_in([getattr(tree, f) for f in tree.__dataclass_fields__])


COPIES = frozenset({"clone", "alias", "detach", "contiguous"})
"""Operators that come and go with the memory layout."""


def operator_name(func: Any) -> str:
    """aten.relu_.default is "relu"; all of the kind of view are "view"."""
    name = str(func.overloadpacket.__name__)
    if name in ("_unsafe_view", "_reshape_alias", "reshape"):
        return "view"
    return name.rstrip("_") if func._schema.is_mutable else name


@dataclass(eq=False)
class Call:
    """One ATen call: `call["input"]` is the argument of that name in the operator's schema."""

    func: Any
    args: dict[str, Any]
    out: Any

    @cached_property
    def name(self) -> str:
        """Operator without overload and without the underscore of in-place variants."""
        return operator_name(self.func)

    @cached_property
    def mutates(self) -> bool:
        return bool(self.func._schema.is_mutable)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Tensor arguments in order, lists flattened."""
        return list(tensors_in(list(self.args.values())))

    @cached_property
    def outs(self) -> list[Tensor]:
        return list(tensors_in(self.out))

    def __getitem__(self, key: str) -> Any:
        return self.args[key]

    def get(self, key: str) -> Any:
        return self.args.get(key)


Outcome = Value | list[Value] | None
Rule = Callable[["Tracer", Call], Outcome]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """What the probe compares: shapes, shadows and numbers of one call."""

    name: str
    shapes: list[tuple[int, ...]]
    shadows: list[Shadow | None]
    inputs: list[Shadow]
    scalars: tuple[Any, ...]


_SCHEMAS: dict[Any, tuple[list[str], dict[str, Any]]] = {}


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their schema name, defaults included."""
    if func not in _SCHEMAS:
        arguments = func._schema.arguments
        defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        _SCHEMAS[func] = ([a.name for a in arguments], defaults)
    names, defaults = _SCHEMAS[func]
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args)`, with short cuts on the meta device, where torch finds the shape of some
    operators by twenty others: that would take longer than all the rest of a trace."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_meta:
        if func is torch.ops.aten.native_batch_norm.default and not args[5]:
            return torch.empty_like(first), first.new_empty(0), first.new_empty(0)
        if func._schema.is_mutable and torch.Tag.pointwise in func.tags:
            operands = tensors_in([*args, *kwargs.values()])
            if all(x is first or x.shape == first.shape for x in operands):
                return first
    return func(*args, **kwargs)


class Tracer(TorchDispatchMode):
    """Applies the rule of every operator to the values of its arguments.

    Args:
        book: where units are written.
        rules: operator name -> rule; `generic` is tried for the others.
    """

    def __init__(self, book: Book, rules: dict[str, Rule], generic: Rule) -> None:
        super().__init__()
        self.book = book
        self.rules = rules
        self.generic = generic
        self.values: dict[int, Value] = {}
        self.alive: list[Tensor] = []
        self.steps: list[Step] = []
        self.multiplied: set[str] = set()
        self.norm_groups: dict[str, int] = {}

    # -- values -------------------------------------------------------------------------------

    def put(self, tensor: Tensor, value: Value) -> None:
        """Remember what `tensor` carries (and the tensor, or its id could be used again)."""
        self.values[id(tensor)] = value
        self.alive.append(tensor)

    def param(self, tensor: Tensor | None) -> ParamView | None:
        """The view of a parameter or buffer that this tensor is, if it is one."""
        value = None if tensor is None else self.values.get(id(tensor))
        return value if isinstance(value, ParamView) else None

    def shadow(self, tensor: Tensor, dims: Iterable[int] | None = None) -> Shadow:
        """Ids of a tensor; a parameter carries those of its own dimension.

        Args:
            dims: dimensions along which a parameter's channels are looked for (None: its only
                dimension above size 1). A parameter with none or several of them is a constant
                that must keep its shape there.
        """
        value = self.values.get(id(tensor))
        if isinstance(value, Shadow):
            return value
        if value is None:
            return uniform(tensor.ndim, self.book.code(f"it meets {CONSTANT}"))
        found = [d for d in value.wide if dims is None or d in dims]
        if len(found) != 1:
            if found:
                self.lock(value, "its dimensions are mixed")
            return uniform(tensor.ndim, self.book.code(f"it meets {value.name}"))
        axis = value.axes[found[0]]
        assert axis is not None
        ids = self.book.axis_ids(value.name, axis, "norm")
        return along(ids, np.full_like(ids, self.residue(value)), tensor.ndim, found[0])

    def residue(self, view: ParamView) -> int:
        """0 for a parameter, which masking zeroes; else the code of the reason it does not."""
        if view.name in self.book.trained:
            return 0
        return self.book.code(f"{view.name} is a buffer, which masking leaves as it is")

    def owns_groups(self, weight: str, groups: int) -> bool:
        """Does a GroupNorm module with this weight say that many groups?"""
        return self.norm_groups.get(weight) == groups

    def lock(self, view: ParamView, reason: str) -> None:
        self.book.lock(view.name, f"{view.name}: {reason}")

    def channels(self, tensor: Tensor, dim: int, op: str) -> Shadow:
        """Ids along `dim`, at full size and one-dimensional.

        Units that vary along another dimension must stay.
        """
        dim = dim % tensor.ndim
        shadow = self.shadow(tensor)
        if any(d != dim for d in shadow.varying):
            self.book.pin(shadow.ids, f"{op} mixes its channels with another dimension")
            first = tuple(slice(None) if d == dim else slice(0, 1) for d in range(shadow.ndim))
            shadow = shadow.at(first)
        return shadow.spread(tensor.shape, (dim,)).shaped((-1,))

    def consume(self, flat: Shadow) -> None:
        """An operator sums over these channels: exact without a channel only if it is zero."""
        self.book.pin_coded(flat.ids, np.where(flat.ids == FIXED, 0, flat.nonzero))

    def attach(self, tensor: Tensor | None, ids: Ids, role: Role, op: str) -> int:
        """A vector argument (bias, scale, statistic) follows `ids`; returns its residue code."""
        if tensor is None:
            return 0
        view = self.param(tensor)
        if view is not None and len(view.axes) == 1 and view.axes[0] is not None:
            self.book.tie(view.name, view.axes[0], ids, role)
            return self.residue(view)
        shadow = self.shadow(tensor).spread(tensor.shape, (0,))
        self.book.union(ids, shadow.ids, f"{op} has a computed vector")
        return int(shadow.nonzero.max(initial=0))

    # -- the forward --------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        bound = bind(func, args, kwargs or {})
        out = run(func, args, kwargs or {})
        call = Call(func, bound, out)
        before = {id(o): self.values.get(id(o)) for o in call.outs} if call.mutates else {}
        inputs = [v for t in call.tensors if isinstance(v := self.values.get(id(t)), Shadow)]
        main = self._record(call, self._apply(call))
        for tensor in call.outs if call.mutates else ():
            self._settle_aliases(call, tensor, before[id(tensor)])
        self._log(call, inputs, main)
        return out

    def _apply(self, call: Call) -> list[Value]:
        if not any(id(t) in self.values for t in call.tensors):
            outcome = self.rules["<constant>"](self, call)
        else:
            outcome = self.rules.get(call.name, self.generic)(self, call)
        if outcome is None:
            outcome = self._unknown(call)
        if isinstance(outcome, list):
            return outcome
        return [outcome] + [self._by_product(call, outcome)] * (len(call.outs) - 1)

    def _by_product(self, call: Call, value: Value) -> Value:
        """Indices of a pooling and the like: laid out as the result, never known to be zero."""
        if isinstance(value, ParamView):
            return value
        code = self.book.code(f"a by-product of {call.name}")
        return Shadow(value.ids, np.full_like(value.ids, code))

    def _record(self, call: Call, values: list[Value]) -> list[bool]:
        """Which outputs carry the rule's value; the others are by-products, constants to us."""
        main = []
        for tensor, value in zip(call.outs, values, strict=False):
            main.append(isinstance(value, ParamView) or value.ndim == tensor.ndim)
            by_product = uniform(tensor.ndim, self.book.code(f"a by-product of {call.name}"))
            self.put(tensor, value if main[-1] else by_product)
        return main

    def _unknown(self, call: Call) -> Value:
        """No rule: whatever enters must stay whole, whatever leaves is a constant to us."""
        for tensor in call.tensors:
            value = self.values.get(id(tensor))
            if isinstance(value, ParamView):
                self.lock(value, f"used by operator {call.name}, for which there is no rule")
            elif value is not None:
                self.book.pin(value.ids, f"enters operator {call.name}, for which there is no rule")
        code = self.book.code(f"it meets the result of {call.name}")
        return uniform(call.outs[0].ndim if call.outs else 0, code)

    def _settle_aliases(self, call: Call, tensor: Tensor, before: Value | None) -> None:
        """A write that changes what a tensor carries reaches every view of its storage."""
        after = self.values[id(tensor)]
        if isinstance(before, ParamView):
            self.lock(before, f"written in place by {call.name}")
            return
        if before is not None and isinstance(after, Shadow) and same(before, after):
            return
        storage = tensor.untyped_storage()._cdata
        reason = f"written through a view by {call.name}"
        for other in {id(t): t for t in self.alive}.values():
            if other is tensor or other.untyped_storage()._cdata != storage:
                continue
            for value in (self.values[id(other)], before, after):
                if isinstance(value, ParamView):
                    self.lock(value, reason)
                elif value is not None:
                    self.book.pin(value.ids, reason)
            self.values[id(other)] = uniform(other.ndim, self.book.code(reason))

    def _log(self, call: Call, inputs: list[Shadow], main: list[bool]) -> None:
        values = [
            self.values.get(id(t)) if m else None for t, m in zip(call.outs, main, strict=False)
        ]
        shadows = [v if isinstance(v, Shadow) else None for v in values]
        pointwise = torch.Tag.pointwise in call.func.tags
        numbers = [v for v in call.args.values() if isinstance(v, float)] if pointwise else []
        shapes = [tuple(t.shape) for t in call.outs]
        if call.name not in COPIES:
            self.steps.append(Step(call.name, shapes, shadows, inputs, tuple(numbers)))


def same(a: Shadow, b: Shadow) -> bool:
    """Equal ids and residues."""
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.nonzero, b.nonzero)
