"""Shapes on the meta device, where torch is slower than many a computation.

It finds the shape of some operators by twenty others, written in Python and with its compiler
imported: that would take longer than all the rest of a trace. What stands here answers the plain
cases of common operators exactly as torch does; anything else, mistakes in the network's code above
all, goes to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.units.trace.calls import Operator, operator
from pipeline.units.trace.skipped.layouts import META, alike, broadcast, new, plain, same

_FLOAT = (
    "relu relu6 hardtanh hardswish hardsigmoid leaky_relu elu celu selu silu gelu mish sigmoid "
    "tanh softplus log_sigmoid add sub mul div neg exp rsqrt sqrt cos sin clamp dropout pow abs "
    "log erf reciprocal minimum maximum"
)
FLOAT = frozenset(_FLOAT.split())
"""Elementwise operators whose result has the type of their operands, where that is a float."""


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, by a short cut where there is one."""
    first = args[0] if args else None
    if isinstance(first, (list, tuple)):
        first = first[0] if first else None
    if isinstance(first, Tensor) and first.is_meta:
        kind = operator(func)
        if kind.mutates:
            if not kwargs and (kind.pointwise or kind.name in FLOAT) and alike(args):
                return first
        elif (known := _SHORT.get(kind.name)) is not None:
            out = known(args, kwargs, kind)
            if out is not None:
                return out
    return func(*args, **kwargs)


Short = Callable[[tuple[Any, ...], dict[str, Any], Operator], Any]


def _elementwise(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    """Operands of one floating type; of several shapes if they are contiguous."""
    del kwargs, kind  # alpha, rounding mode, approximation: the shape does not depend on them
    first = args[0]
    if not first.is_floating_point() or any(isinstance(a, complex) for a in args):
        return None
    if alike(args):
        return same(first)
    shape: tuple[int, ...] | None = first.shape
    for x in args:
        if isinstance(x, Tensor):
            if x.dtype != first.dtype or not plain(x) or shape is None:
                return None
            shape = broadcast(shape, x.shape)
    return None if shape is None else new(shape, first)


def _compared(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    shape: tuple[int, ...] | None = ()
    for x in args:
        if isinstance(x, Tensor):
            if not plain(x) or shape is None:
                return None
            shape = broadcast(shape, x.shape)
    return None if kwargs or shape is None else torch.empty(shape, dtype=torch.bool, device=META)


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Any:
    """With running statistics, as in evaluation mode."""
    del kind
    x = args[0]
    if kwargs or len(args) < 6 or args[5]:
        return None
    return same(x), new((0,), x), new((0,), x)


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    if kwargs or len(args) != 9 or args[6]:
        return None
    x, weight, bias, stride, padding, dilation, _, _, groups = args
    dims = x.ndim - 2
    if not (plain(x) and plain(weight)) or x.dtype != weight.dtype or weight.ndim != x.ndim:
        return None
    if not len(stride) == len(padding) == len(dilation) == dims or 0 in x.shape:
        return None
    made, inner, *kernel = weight.shape
    if x.shape[1] != inner * groups or made % groups or made == 0:
        return None
    if bias is not None and (tuple(bias.shape) != (made,) or bias.dtype != x.dtype):
        return None
    image = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return None if min(image, default=1) < 1 else new((x.shape[0], made, *image), x)


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Any:
    """Contiguous whatever comes in; with the statistics of every position."""
    del kind
    x, shape = args[0], tuple(args[1])
    if kwargs or x.dtype not in (torch.float32, torch.float64) or not shape:
        return None
    if tuple(x.shape[-len(shape) :]) != shape or 0 in x.shape:
        return None
    for vector in args[2:4]:
        if vector is not None and (tuple(vector.shape) != shape or vector.dtype != x.dtype):
            return None
    statistics = x.shape[: -len(shape)] + (1,) * len(shape)
    return new(x.shape, x), new(statistics, x), new(statistics, x)


def _safe_softmax(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    x = args[0]
    if kwargs or len(args) != 2 or not plain(x) or not x.is_floating_point():
        return None
    return new(x.shape, x) if -x.ndim <= args[1] < x.ndim else None


def _softmax(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    return None if len(args) != 3 or args[2] else _safe_softmax(args[:2], kwargs, kind)


def _clone(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    x, wanted = args[0], kwargs.get("memory_format", torch.preserve_format)
    if len(args) > 1 or wanted not in (torch.preserve_format, torch.contiguous_format):
        return None
    return new(x.shape, x) if wanted is torch.contiguous_format else same(x)


def _rolled(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    x, shifts, *dims = args
    if kwargs or not plain(x) or len(dims) != 1 or len(dims[0]) != len(shifts) or not shifts:
        return None
    return new(x.shape, x) if all(-x.ndim <= d < x.ndim for d in dims[0]) else None


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    table, places = args[:2]
    if kwargs or table.ndim != 2 or places.dtype != torch.int64 or not plain(places):
        return None
    return new((*places.shape, table.shape[1]), table)


def _index(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    """By one tensor of positions, along one dimension."""
    del kind
    x, places = args
    chosen = [(d, p) for d, p in enumerate(places) if p is not None]
    if kwargs or len(chosen) != 1 or len(places) > x.ndim or not (x.ndim == 1 or plain(x)):
        return None
    dim, place = chosen[0]
    if place.dtype != torch.int64 or not plain(place):
        return None
    return new((*x.shape[:dim], *place.shape, *x.shape[dim + 1 :]), x)


def _resized(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    """Of an image, to a size that is given."""
    del kind
    x, size = args[:2]
    if kwargs or not plain(x) or x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        return None
    if not isinstance(size, (list, tuple)) or len(size) != 2 or min(size) < 1:
        return None
    return new((*x.shape[:2], *size), x)


def _mean(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Any:
    """Of the shape of a sum, which torch finds faster."""
    del kind
    if kwargs or len(args) < 2 or not args[0].is_floating_point():
        return None
    return torch.ops.aten.sum.dim_IntList(*args)


def _product(
    args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator, ndim: int
) -> Tensor | None:
    """(..., m, k) @ (..., k, n) of `ndim` dimensions; before them what is added, if anything."""
    del kind
    *added, a, b = args
    if kwargs or len(args) > 3 or not (a.ndim == b.ndim == ndim) or a.dtype != b.dtype:
        return None
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    if added and (added[0].shape != b.shape[-1:] or added[0].dtype != a.dtype):
        return None
    return new((*a.shape[:-1], b.shape[-1]), a)


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any], kind: Operator) -> Tensor | None:
    del kind
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if kwargs or first.ndim < 2 or not -first.ndim <= dim < first.ndim:
        return None
    shapes = [list(x.shape) for x in tensors]
    if not all(plain(x) and x.dtype == first.dtype and x.ndim == first.ndim for x in tensors):
        return None
    length = sum(shape.pop(dim) for shape in shapes)
    if any(shape != shapes[0] for shape in shapes):
        return None
    others = iter(shapes[0])
    along = dim % first.ndim
    return new(tuple(length if d == along else next(others) for d in range(first.ndim)), first)


_SHORT: Mapping[str, Short] = {
    **dict.fromkeys(FLOAT, _elementwise),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compared),
    "native_batch_norm": _batch_norm,
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "_safe_softmax": _safe_softmax,
    "mean": _mean,
    "mm": partial(_product, ndim=2),
    "addmm": partial(_product, ndim=2),
    "bmm": partial(_product, ndim=3),
    "cat": _cat,
    "clone": _clone,
    "_softmax": _softmax,
    "embedding": _embedding,
    "index": _index,
    "roll": _rolled,
    "upsample_bilinear2d": _resized,
    "upsample_bicubic2d": _resized,
}
