"""Follow one forward pass: what every tensor carries, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.experts.find import Calls
from pipeline.units.experts.trial import Candidate
from pipeline.units.groups import NormKind, Role
from pipeline.units.trace.aliases import Aliases
from pipeline.units.trace.book import Book
from pipeline.units.trace.calls import (
    COPIES,
    PRODUCTS,
    Call,
    bind,
    operator,
    wide_strides,
)
from pipeline.units.trace.demand.numbers import Numbers
from pipeline.units.trace.shadow import FIXED, Ids, ParamView, Shadow, Value, along, same, uniform
from pipeline.units.trace.shapes import run
from pipeline.units.trace.steps import Entered, Step, entered_by, step_of
from pipeline.units.trace.whole.branches import Flow

Attention = Literal["heads", "head_dim", "query_key", "none"]

INPUT, OUTPUT = "the network's input", "it reaches the network's output"
CONSTANT = "a constant"


Outcome = Value | list[Value] | None
Rule = Callable[["Tracer", Call], Outcome]


class Tracer(TorchDispatchMode):
    """Applies the rule of every operator to the values of its arguments.

    Args:
        book: where units are written.
        rules: operator name -> rule; `generic` is tried for the others.
        attention: the unit where two activations are multiplied as matrices.
    """

    def __init__(
        self,
        book: Book,
        rules: dict[str, Rule],
        generic: Rule,
        attention: Attention = "heads",
    ) -> None:
        super().__init__()
        self.book = book
        self.attention = attention
        self.product_number = -1
        self.products: dict[int, list[tuple[int, Ids]]] = {}
        self.rules = rules
        self.generic = generic
        self.values: dict[int, Value] = {}
        self.alive: list[Tensor] = []
        self.aliases = Aliases(self.alive)
        self.steps: list[Step] = []
        self.multiplied: set[str] = set()
        self.norm_groups: dict[str, int] = {}
        self.made_from: dict[int, frozenset[str]] = {}
        self.remade: set[str] = set()
        self.parts: list[Ids] = []
        self.owners: dict[str, frozenset[str]] = {}
        self.stack: list[str] = []
        self.read_elsewhere: dict[str, set[str]] = {}
        self.norm_kinds: dict[str, NormKind] = {}
        self.normed: dict[str, Ids] = {}
        self.experts: list[Candidate] = []
        self.calls: Calls | None = None
        self.flow: Flow | None = None
        self.numbers: Numbers | None = None
        self._by_products: dict[str, int] = {}

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
        return along(ids, self.residue(value), tensor.ndim, found[0])

    def residue(self, view: ParamView) -> int:
        """0 for a parameter, which masking zeroes; else the code of the reason it does not."""
        if view.name in self.book.trained:
            return 0
        return self.book.code(f"{view.name} is a buffer, which masking leaves as it is")

    def makers(self, tensor: Tensor) -> tuple[str, ...]:
        """Parameters that alone this tensor was computed from in the forward; none: it was not."""
        return tuple(sorted(self.made_from.get(id(tensor), ())))

    def lock(self, view: ParamView, reason: str) -> None:
        self.book.lock(view.name, f"{view.name}: {reason}")

    def channels(self, tensor: Tensor, dim: int, op: str) -> Shadow:
        """Ids along `dim`, at full size and one-dimensional.

        Positions along other dimensions are joined; units that vary only there must stay.
        """
        dim = dim % tensor.ndim
        shadow = self.shadow(tensor)
        if (flat := shadow.alone(dim)) is not None and flat.ids.size == tensor.shape[dim]:
            return flat
        if dim in shadow.varying:
            shadow = self.tied(shadow, [d for d in shadow.varying if d != dim], op)
        elif shadow.varying:
            self.book.pin(shadow.ids, f"{op} mixes its channels with another dimension")
            first = tuple(slice(None) if d == dim else slice(0, 1) for d in range(shadow.ndim))
            shadow = shadow.at(first)
        flat = shadow.spread(tensor.shape, (dim,)).shaped((-1,))
        if shadow.varying == (dim,):
            shadow.flat = dim, flat
        return flat

    def tied(self, shadow: Shadow, dims: Iterable[int], op: str) -> Shadow:
        """Positions along these dimensions become one unit; size 1 there."""
        for d in dims:
            if shadow.ids.shape[d] > 1:
                head = self.book.plain(shadow).headed(d)
                reason = f"{op} joins it with channels that must stay"
                self.book.union(shadow.ids, head.ids, reason)
                shadow = head
        return shadow

    def consume(self, flat: Shadow) -> None:
        """An operator sums over these channels: exact without a channel only if it is zero."""
        if not flat.zero:
            self.book.pin_coded(flat.ids, np.where(flat.ids == FIXED, 0, flat.nonzero))

    def attach(self, tensor: Tensor | None, ids: Ids, role: Role, op: str) -> Ids | int:
        """A vector argument (bias, scale, statistic) follows `ids`; returns its residue code, or
        one per position."""
        if tensor is None:
            return 0
        view = self.param(tensor)
        if view is not None and len(view.axes) == 1 and view.axes[0] is not None:
            self.book.tie(view.name, view.axes[0], ids, role)
            return self.residue(view)
        shadow = self.shadow(tensor).spread(tensor.shape, (0,))
        self.book.union(ids, shadow.ids, f"{op} has a computed vector")
        return shadow.residue

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler at the first call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = operator(func).name
        self.product_number += name in PRODUCTS
        bound = bind(func, args, kwargs)
        strides = wide_strides(args[0]) if name == "as_strided" else None
        out = (run if self.numbers is None else self.numbers.run)(func, args, kwargs)
        call = Call(func, bound, out)
        call.relaid = strides is not None and strides == wide_strides(out)
        before = {id(o): self.values.get(id(o)) for o in call.outs} if call.mutates else {}
        entered = self._entered(call)
        if self.flow is not None:
            self.flow.see(call, self.values)
        main = self._record(call, self._apply(call))
        self._remember_makers(call)
        for tensor in call.outs if call.mutates else ():
            self._settle_aliases(call, tensor, before[id(tensor)])
        if call.name not in COPIES:
            where = tuple(self.stack)
            self.steps.append(step_of(call, entered, self.values, main, where, self.numbers))
        return out

    def _entered(self, call: Call) -> Entered:
        """Values of the arguments; a parameter read outside its own layer is recorded."""
        entered = entered_by(call, self.values, self.numbers)
        layer = self.stack[-1] if self.stack else ""
        for view in entered.views:
            if layer not in self.owners.get(view.name, ()):
                self.read_elsewhere.setdefault(view.name, set()).add(layer)
        return entered

    def _apply(self, call: Call) -> list[Value]:
        try:
            if self.values.keys().isdisjoint(map(id, call.tensors)):
                outcome = self.rules["<constant>"](self, call)
            else:
                outcome = self.rules.get(call.name, self.generic)(self, call)
        except Exception as error:  # a case the rule's author did not foresee: refuse it
            why = f"enters operator {call.name}, whose rule fails here ({type(error).__name__})"
            outcome = self._unknown(call, why)
        if outcome is None:
            outcome = self._unknown(
                call, f"enters operator {call.name}, for which there is no rule"
            )
        if isinstance(outcome, list):
            return outcome
        return [outcome] + [self._by_product(call, outcome)] * (len(call.outs) - 1)

    def _remember_makers(self, call: Call) -> None:
        """A weight may be computed from parameters, by operators with a rule or without."""
        names: set[str] = set()
        for tensor in call.tensors:
            value = self.values.get(id(tensor))
            if isinstance(value, ParamView):
                names.add(value.name)
            elif id(tensor) in self.made_from:
                names |= self.made_from[id(tensor)]
            elif value is not None:  # an activation
                names.clear()
                break
        for out in call.outs if names or call.mutates else ():
            self.made_from.pop(id(out), None)
            if names:
                self.made_from[id(out)] = frozenset(names)

    def _by_product(self, call: Call, value: Value) -> Value:
        """Indices of a pooling and the like: laid out as the result, never known to be zero."""
        if isinstance(value, ParamView):
            return value
        return value.coded(self._by_product_of(call))

    def _by_product_of(self, call: Call) -> int:
        code = self._by_products.get(call.name)
        if code is None:
            code = self._by_products[call.name] = self.book.code(f"a by-product of {call.name}")
        return code

    def _record(self, call: Call, values: list[Value]) -> list[bool]:
        """Which outputs carry the rule's value; the others are by-products, constants to us."""
        main = []
        for tensor, value in zip(call.outs, values, strict=False):
            main.append(isinstance(value, ParamView) or value.ndim == tensor.ndim)
            code = self._by_product_of(call)
            self.put(tensor, value if main[-1] else uniform(tensor.ndim, code))
        return main

    def _unknown(self, call: Call, why: str) -> Value:
        """No rule: whatever enters must stay whole, whatever leaves is a constant to us."""
        for tensor in call.tensors:
            value = self.values.get(id(tensor))
            if isinstance(value, ParamView):
                self.lock(value, why.replace("enters", "used by", 1))
            elif value is not None:
                self.book.pin(value.ids, why)
        ndim = call.outs[0].ndim if call.outs else 0
        return uniform(ndim, self.book.code(f"it meets the result of {call.name}"))

    def _settle_aliases(self, call: Call, tensor: Tensor, before: Value | None) -> None:
        """A write that changes what a tensor carries reaches every view of its storage."""
        after = self.values[id(tensor)]
        if isinstance(before, ParamView):
            self.lock(before, f"written in place by {call.name}")
            return
        if before is not None and isinstance(after, Shadow) and same(before, after):
            return
        others = {id(x): x for x in self.aliases.of(tensor) if x is not tensor}
        reason = f"written through a view by {call.name}"
        found = {id(v): v for v in (before, after, *map(self.values.get, others))}
        for value in found.values() if others else ():
            if isinstance(value, ParamView):
                self.lock(value, reason)
            elif value is not None:
                self.book.pin(value.ids, reason)
        lost = {n: uniform(n, self.book.code(reason)) for n in {x.ndim for x in others.values()}}
        self.values.update({key: lost[x.ndim] for key, x in others.items()})
