"""Where the tensors of a network come from that do not depend on its input.

Such a tensor is a parameter or buffer, or is computed from these: a slice of packed projections, a
mask times a weight. Evaluated on the network's values it says which entries are zero; evaluated on
the masks of a plan, which are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pipeline.units.trace.calls import operator, tensors_in

EVEN = frozenset(
    {"view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "alias", "detach"}
    | {"clone", "contiguous", "_to_copy", "lift_fresh"}
)
"""Operators whose result has every entry of their argument, each equally often."""
MOVES = EVEN | {
    *("slice", "select", "split", "split_with_sizes", "unbind", "cat", "stack", "flip", "roll"),
    *("repeat", "as_strided", "diagonal", "unfold", "unsafe_split", "unsafe_split_with_sizes"),
}
"""Operators that move entries and change none."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a tensor comes from that does not depend on the network's input.

    Attributes:
        name: of the parameter or buffer that it is; empty if it is computed.
        value: of a constant that belongs to no module.
        call: function, arguments (with sources in place of tensors) and number of the output.
        stored: it is, or is computed from, a parameter.
        moved: its entries are entries of parameters, none changed.
        even: name of the parameter of which it has every entry, each equally often.
    """

    name: str = ""
    value: Tensor | None = None
    call: tuple[Any, Any, dict[str, Any], int] | None = None
    stored: bool = False
    moved: bool = False
    even: str = ""

    def evaluate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Its entries where parameters and buffers are `tensors`."""
        if self.call is None:
            return tensors[self.name] if self.value is None else self.value
        func, args, kwargs, number = self.call
        args, kwargs = tree_map(
            lambda x: x.evaluate(tensors) if isinstance(x, Source) else x, (args, kwargs)
        )
        if kwargs.get("device") is not None:  # a constant that the forward makes
            kwargs = {**kwargs, "device": next(iter(tensors.values())).device}
        if operator(func).mutates:
            args = (args[0].clone(), *args[1:])
        return list(tensors_in(func(*args, **kwargs)))[number]


class Values(Protocol):
    """What stands in the parameters: their numbers, or the masks of a plan."""

    def size(self, name: str) -> int:
        """Entries of a parameter."""

    def nonzero(self, name: str) -> int:
        """Entries of a parameter that are not zero."""

    def entries(self, source: Source) -> Tensor:
        """All entries of a source, zero where it is zero."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One counted call: module path, MACs, and where its stored factors come from.

    Attributes:
        factors: one per factor; None for an activation.
        matrices: two factors (..., m, k) @ (..., k, n).
    """

    path: str
    macs: int
    factors: tuple[Source | None, ...] = ()
    matrices: bool = False

    @property
    def stored(self) -> tuple[Source, ...]:
        return tuple(source for source in self.factors if source is not None)

    def left(self, values: Values) -> int:
        """MACs in which no stored factor has an entry of zero; activations count as dense."""
        stored = self.stored
        if len(stored) == 1 and stored[0].even:
            name = stored[0].even
            size = values.size(name)
            return self.macs * values.nonzero(name) // size if size else self.macs
        entries = [values.entries(source) for source in stored]
        if len(entries) == 2 and self.matrices:
            return _products(*entries)
        macs = self.macs
        for x in entries:
            macs = macs * int(torch.count_nonzero(x)) // x.numel() if x.numel() else macs
        return macs


def _products(left: Tensor, right: Tensor) -> int:
    """MACs of left @ right in which both entries are not zero."""
    a = (left if left.ndim > 1 else left.unsqueeze(0)) != 0
    b = (right if right.ndim > 1 else right.unsqueeze(-1)) != 0
    return int((a.sum(-2) * b.sum(-1)).sum())
