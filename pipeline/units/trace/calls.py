"""One ATen call: its operator, its arguments by name, its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


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


PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
"""Matrix products; tracing and counting number them alike."""


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


_SCHEMAS: dict[Any, tuple[list[str], dict[str, Any]]] = {}


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their schema name, defaults included."""
    if func not in _SCHEMAS:
        arguments = func._schema.arguments
        defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        _SCHEMAS[func] = ([a.name for a in arguments], defaults)
    names, defaults = _SCHEMAS[func]
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


VALUED = frozenset({"full", "fill", "scalar_tensor", "masked_fill", "full_like"})


def numbers_of(func: Any, bound: dict[str, Any]) -> tuple[float, ...]:
    """Numbers among the arguments that enter the values of the result, not its shape."""
    if torch.Tag.pointwise not in func.tags and operator_name(func) not in VALUED:
        return ()
    return tuple(v for v in bound.values() if isinstance(v, (int, float)) and v not in (True, 1))


_FLOAT = (
    "relu relu6 hardtanh hardswish hardsigmoid leaky_relu elu celu selu silu gelu mish sigmoid "
    "tanh softplus log_sigmoid add sub mul div neg exp rsqrt sqrt cos sin clamp dropout"
)
FLOAT = frozenset(_FLOAT.split())
"""Elementwise operators whose result has the type of their operands, where that is a float."""


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args)`, with short cuts on the meta device, where torch finds the shape of some
    operators by twenty others, written in Python and with its compiler imported: that would take
    longer than all the rest of a trace."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_meta:
        if func is torch.ops.aten.native_batch_norm.default and not args[5]:
            return torch.empty_like(first), first.new_empty(0), first.new_empty(0)
        if func is torch.ops.aten.mean.dim and not kwargs and first.is_floating_point():
            return torch.ops.aten.sum.dim_IntList(*args)
        if func is torch.ops.aten.addmm.default:
            a, b = args[1], args[2]
            if a.shape[1] == b.shape[0] and first.shape == b.shape[1:]:
                return a.new_empty(a.shape[0], b.shape[1])
        if torch.Tag.pointwise in func.tags or operator_name(func) in FLOAT:
            operands = [x for x in args if isinstance(x, Tensor)]
            alike = all(x.shape == first.shape and x.dtype == first.dtype for x in operands)
            if alike and func._schema.is_mutable and not kwargs:
                return first
            if alike and first.is_floating_point() and operator_name(func) in FLOAT:
                return torch.empty_like(first)
    return func(*args, **kwargs)
