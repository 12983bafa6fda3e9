"""One ATen call: its operator, its arguments by name, its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


COPIES = frozenset({"clone", "alias", "detach", "contiguous", "as_strided"})
"""Operators that come and go with the memory layout."""


PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
"""Matrix products; tracing and counting number them alike."""


_FILL, _SCALED, _EPS = ("fill_value",), ("beta", "alpha"), ("eps",)
VALUED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("full", "full_like", "new_full"), _FILL),
    **dict.fromkeys(("fill", "masked_fill", "index_fill"), ("value",)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), _SCALED),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm"), _EPS),
    **dict.fromkeys(("tril", "triu"), ("diagonal",)),
    **dict.fromkeys(("linspace", "logspace"), ("start", "end", "base")),
    "scalar_tensor": ("s",),
    "arange": ("start", "end", "step"),
    "roll": ("shifts",),
    "slice": ("start", "step"),
    "select": ("index",),
}
"""Arguments that enter the values of the result without showing in its shape. Of elementwise
operators these are all numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class Operator:
    """What all calls of one overload have in common.

    Attributes:
        func: the overload.
        name: without overload and without the underscore of in-place variants; aten.relu_.default
            is "relu", all of the kind of view are "view".
        pointwise: torch says that it works element by element.
        valued: names of the numeric arguments that enter the values of the result, not its shape.
        names: of its arguments in order.
        defaults: of the arguments that have one.
        aliases: a result may share memory with an argument.
    """

    func: Any
    name: str
    mutates: bool
    pointwise: bool
    valued: tuple[str, ...]
    names: tuple[str, ...]
    defaults: dict[str, Any]
    aliases: bool


_known: dict[int, Operator] = {}


def operator(func: Any) -> Operator:
    """Read once per overload: torch answers slowly, and hashes its overloads in Python."""
    found = _known.get(id(func))
    if found is None:
        found = _known[id(func)] = _read(func)
    return found


def _read(func: Any) -> Operator:
    mutates = bool(func._schema.is_mutable)
    name = str(func.overloadpacket.__name__)
    if name in ("_unsafe_view", "_reshape_alias", "reshape"):
        name = "view"
    elif mutates:
        name = name.rstrip("_")
    pointwise = torch.Tag.pointwise in func.tags
    arguments = func._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    names = tuple(a.name for a in arguments)
    valued = names if pointwise else VALUED.get(name, ())
    aliases = any(r.alias_info is not None for r in func._schema.returns)
    return Operator(func, name, mutates, pointwise, valued, names, defaults, aliases)


def operator_name(func: Any) -> str:
    """`operator(func).name`."""
    return operator(func).name


class Call:
    """One ATen call: `call["input"]` is the argument of that name in the operator's schema.

    Attributes:
        args: by name, defaults included.
        tensors: tensor arguments in order, lists flattened.
        outs: tensors of the result.
        relaid: an as_strided that moved no element.
    """

    __slots__ = (
        *("args", "func", "kind", "mutates", "name", "out", "outs", "pointwise", "relaid"),
        "tensors",
    )

    def __init__(self, func: Any, args: dict[str, Any], out: Any) -> None:
        kind = operator(func)
        self.func = func
        self.kind = kind
        self.args = args
        self.out = out
        self.name = kind.name
        self.mutates = kind.mutates
        self.pointwise = kind.pointwise
        self.tensors = flat(args.values())
        self.relaid = False
        self.outs = [out] if isinstance(out, Tensor) else list(tensors_in(out))

    def __getitem__(self, key: str) -> Any:
        return self.args[key]

    def get(self, key: str) -> Any:
        return self.args.get(key)


def flat(values: Iterable[Any]) -> list[Tensor]:
    """Arguments of an operator are tensors, lists of tensors, or no tensors at all."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their schema name, defaults included."""
    kind = operator(func)
    return {**kind.defaults, **dict(zip(kind.names, args, strict=False)), **kwargs}


def numbers_of(func: Any, bound: dict[str, Any]) -> tuple[Any, ...]:
    """Numbers among the arguments that enter the values of the result, not its shape."""
    found: list[Any] = []
    for name in operator(func).valued:
        value = bound.get(name)
        if isinstance(value, (list, tuple)) and not any(isinstance(v, Tensor) for v in value):
            found.append(tuple(value))
        elif isinstance(value, (int, float)):
            found.append(value)
    return tuple(found)


def content(tensor: Tensor) -> bytes:
    """The values of a tensor, for comparison; empty where there are none."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        return b""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).cpu().numpy().tobytes())


def wide_strides(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Where the elements of a tensor lie; the stride of a dimension of size 1 says nothing."""
    strides = tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1)
    return tuple(x.shape), strides, int(x.storage_offset())
