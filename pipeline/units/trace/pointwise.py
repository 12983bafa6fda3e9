"""Elementwise operators: tensors that meet share their channels.

Whether a channel stays zero is asked of the operator itself: it is called on sample values with
zeros in place of the operands that are zero. So relu, clamp(-1, 6), mul and where need no table.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.units.leftovers.formula import ZERO, Formula, Scalar
from pipeline.units.trace.calls import Call
from pipeline.units.trace.shadow import FIXED, Ids, Shadow, uniform
from pipeline.units.trace.tracer import Outcome, Tracer

SAMPLES = 24
KNOWN = frozenset({"hardswish", "_prelu_kernel", "hardsigmoid", "dropout", "masked_fill", "mish"})
"""Elementwise operators that torch does not tag as such."""

UNTRIED = ("device", "layout", "pin_memory", "generator")
"""Arguments of a call that its trial on sample values leaves out."""

EQUAL = frozenset({"eq", "isclose"})
"""True where a zero meets another."""

BY_NUMBER = frozenset({"mul", "fill"})
"""Operators that a number alone can make zero."""

LONGEST = 64
"""Operators in a formula."""

_stays_zero: dict[tuple[Any, ...], bool] = {}


def is_pointwise(call: Call) -> bool:
    """torch says so, or we know it."""
    return call.pointwise or call.name in KNOWN


def pointwise(t: Tracer, call: Call) -> Outcome:
    """Join the channels of all operands; broadcast ones keep out of it."""
    if not is_pointwise(call) or any(isinstance(a, list) for a in call.args.values()):
        return None
    if any(x.is_quantized for x in (*call.tensors, *call.outs)):
        return None  # it has no numbers to be tried on
    shape = tuple(call.outs[0].shape)
    if len(call.tensors) == 1 and _is_shadow(t, call.tensors[0]):
        one = t.shadow(call.tensors[0])
        residue = _residues(t, call, [one], one.ids.shape)
        one = one.coded(residue) if isinstance(residue, int) else Shadow(one.ids, residue)
        return one.narrow()
    operands = _operands(t, call.tensors, shape)
    ids, joined = _join(t, call, operands, shape)
    return Shadow(ids, _residues(t, call, joined, ids.shape)).narrow()


def _is_shadow(t: Tracer, tensor: Tensor) -> bool:
    return isinstance(t.values.get(id(tensor)), Shadow)


def _operands(t: Tracer, tensors: list[Tensor], shape: tuple[int, ...]) -> list[Shadow]:
    """Shadows with the output's number of dimensions; parameters follow the activations."""
    lead = [len(shape) - x.ndim for x in tensors]
    varying = {
        d + lead[i] for i, x in enumerate(tensors) if _is_shadow(t, x) for d in t.shadow(x).varying
    }
    shadows = []
    for x, offset in zip(tensors, lead, strict=True):
        dims: list[int] | None = [d - offset for d in varying] if varying else None
        own = t.param(x)
        if own is not None and not varying and not _follows(t, own.name):
            dims = []  # a table on its own: positions, frequencies, anchors
        if t.attention == "heads" and own is not None and _spread(x, varying, offset):
            dims = []  # one parameter for all heads keeps its shape
        shadow = t.shadow(x, dims)
        if t.attention == "heads" and t.makers(x) and _spread(x, varying, offset):
            t.book.pin(shadow.ids, "one vector serves all heads")
            shadow = uniform(x.ndim, t.book.code("it meets one vector of all heads"))
        shadows.append(shadow.shaped((1,) * offset + shadow.ids.shape))
    return shadows


def _follows(t: Tracer, name: str) -> bool:
    """May this tensor, met by numbers only, lose positions?"""
    return name in t.book.trained or name in t.book.statistics


def _spread(tensor: Tensor, varying: set[int], offset: int) -> bool:
    """Does it serve several units along one dimension and meet them along another?"""
    sizes = [1 if d < offset else tensor.shape[d - offset] for d in varying]
    return 1 in sizes and max(sizes) > 1


def _join(
    t: Tracer, call: Call, operands: list[Shadow], shape: tuple[int, ...]
) -> tuple[Ids, list[Shadow]]:
    """Ids of the result and the operands as its positions see them.

    What is spread along one dimension of units and has a size of its own along another keeps that
    size: positions there are joined.
    """
    full = np.broadcast_shapes(*(s.ids.shape for s in operands))
    ids: Ids | None = None
    joined = []
    rigid: set[int] = set()
    for tensor, shadow in zip(call.tensors, operands, strict=True):
        sizes = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
        met = {d for d, n in enumerate(full) if n > 1 and sizes[d] > 1}
        alone = any(n > 1 and size == 1 for n, size in zip(full, sizes, strict=True))
        if alone and (not met or (shadow.ids == FIXED).all()):
            rigid |= met
            t.book.pin(shadow.ids, f"one channel is spread over many by {call.name}")
            code = _spread_code(t, call, tensor)
            joined.append(Shadow(np.full(full, FIXED), code))
            continue
        reason = f"{call.name} joins it with channels that must stay"
        spread = shadow.spread(full, range(len(full)))
        ids = spread.ids if ids is None else t.book.union(ids, spread.ids, reason)
        joined.append(spread)
    if ids is None:
        ids = np.full(full, FIXED)
    if rigid:
        ids = np.broadcast_to(t.tied(Shadow(ids, 0), rigid, call.name).ids, full)
    return ids, joined


def _spread_code(t: Tracer, call: Call, tensor: Tensor) -> int:
    """A parameter that all channels share is a constant."""
    reason = f"{call.name} spreads one channel over many"
    view = t.param(tensor)
    if view is None or math.prod(t.book.shapes[view.name]) != 1:
        return t.book.code(reason)
    return t.book.settled((view.name, call.name), reason, Scalar(view.name))


def _residues(t: Tracer, call: Call, operands: list[Shadow], shape: tuple[int, ...]) -> Ids | int:
    """Per position: 0 if the result is zero where its unit is."""
    codes = [operand.code for operand in operands if operand.zero or operand.code is not None]
    if len(codes) == len(operands):
        return _residue(t, call, tuple([code or 0 for code in codes]))
    base, numbers = len(t.book.reasons), np.zeros(shape, dtype=np.int64)
    for operand in operands:
        numbers = numbers * base + operand.nonzero
    result = np.zeros(shape, dtype=np.int64)
    for number in np.unique(numbers).tolist():
        met = [number // base**i % base for i in reversed(range(len(operands)))]
        result[numbers == number] = _residue(t, call, tuple(met))
    return result


def _residue(t: Tracer, call: Call, codes: tuple[int, ...]) -> int:
    """Of a result whose operands have these."""
    if stays_zero(call, sum(1 << i for i, code in enumerate(codes) if code == 0)):
        return 0
    cause = next((t.book.reasons[code] for code in codes if code), "")
    reason = cause or f"{call.name} of zero is not zero"
    if any(code and code not in t.book.formulas for code in codes):
        return t.book.code(reason)
    made = _formula(t, call, codes)
    if made is None:
        return t.book.code(reason)
    numbers = tuple(repr(v) for v in call.args.values() if not isinstance(v, Tensor))
    return t.book.settled((call.kind, numbers, codes), reason, made)


def _formula(t: Tracer, call: Call, codes: tuple[int, ...]) -> Formula | None:
    """Of a result whose operands are all constants, where it has one."""
    known = all(x.is_floating_point() for x in (*call.tensors, *call.outs))
    if not known or torch.Tag.nondeterministic_seeded in call.func.tags:
        return None
    operands = iter(t.book.formulas.get(code, ZERO) for code in codes)
    args = {
        name: next(operands) if isinstance(value, Tensor) else value
        for name, value in call.args.items()
        if name not in UNTRIED
    }
    made = Formula(call.func, {a: args[a] for a in call.kind.names if a in args})
    return made if made.size <= LONGEST and made.computes() else None


def stays_zero(call: Call, bits: int) -> bool:
    """Is the result zero when operand i is zero for every set bit i, whatever the others are?

    Samples can tell only what they meet: thresholds (`hardshrink`) and equal values they miss.
    """
    if call.name in EQUAL or (bits == 0 and call.name not in BY_NUMBER):
        return False
    numbers = tuple(repr(v) for v in call.args.values() if not isinstance(v, Tensor))
    key = (call.kind, bits, numbers, tuple([x.dtype for x in call.tensors]))
    if key not in _stays_zero:
        _stays_zero[key] = _try_zero(call, bits)
    return _stays_zero[key]


def _try_zero(call: Call, bits: int) -> bool:
    args, i = {}, 0
    for name, value in call.args.items():
        if isinstance(value, Tensor):
            args[name] = _sample(i, value.dtype, bool(bits >> i & 1))
            i += 1
        elif name not in UNTRIED:
            args[name] = value
    try:
        result = call.func(**_by_schema(call.func, args))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    first = result if isinstance(result, Tensor) else result[0]
    return bool((first == 0).all())


def _by_schema(func: Any, args: dict[str, Any]) -> dict[str, Any]:
    return {a.name: args[a.name] for a in func._schema.arguments if a.name in args}


def _sample(i: int, dtype: torch.dtype, zero: bool) -> Tensor:
    """Values with no relation between operands: both signs, small and large."""
    if zero:
        return torch.zeros(SAMPLES, dtype=dtype)
    steps = torch.arange(1, SAMPLES + 1, dtype=torch.float64)
    values = 3.0 * torch.sin(steps * (1.7 + 0.61 * i) + 0.4)
    return (
        (values > 0)
        if dtype == torch.bool
        else (values * 2 if not dtype.is_floating_point else values).to(dtype)
    )
