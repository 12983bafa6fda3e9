"""Operators that summarise: pooling, reductions, softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.units.trace.calls import Call
from pipeline.units.trace.layout import first
from pipeline.units.trace.shadow import Shadow, uniform
from pipeline.units.trace.tracer import Outcome, Rule, Tracer


def spatial(dims: int) -> Rule:
    """Rule of an operator that works on the last `dims` dimensions, channel by channel."""

    def rule(t: Tracer, call: Call) -> Outcome:
        x = first(call)
        shadow = t.shadow(x)
        if any(d >= x.ndim - dims for d in shadow.varying):
            t.book.pin(shadow.ids, f"{call.name} mixes its channels")
            return uniform(call.outs[0].ndim, t.book.code(f"it meets the result of {call.name}"))
        return shadow

    return rule


SUMS = ("sum", "linalg_vector_norm")
"""Reductions over which channels that are zero change nothing."""


def reduce(t: Tracer, call: Call) -> Outcome:
    """mean, sum, amax, ... over some dimensions; a sum over channels reads them."""
    if len(call.tensors) > 1:
        return None
    x = first(call)
    if call.name == "linalg_vector_norm" and not 0 < call["ord"] < math.inf:
        return None
    chosen = call.get("dim")
    dims = _dims(chosen, x.ndim)
    shadow = t.shadow(x)
    if len(shadow.varying) > 1 and not set(shadow.varying) <= set(dims):
        shadow = t.tied(shadow, dims, call.name)
    if crossed := [d for d in dims if d in shadow.varying]:
        if call.name in SUMS and shadow.varying == tuple(crossed):
            t.consume(shadow.shaped((-1,)))
        elif call.name == "mean" and dims == list(shadow.varying) == _normed(t, x.ndim):
            _mean_of_squares(t, shadow)
        else:
            t.book.pin(shadow.ids, f"{call.name} runs over its channels")
        return uniform(call.outs[0].ndim, t.book.code(f"it meets the {call.name} over channels"))
    kept = [n for d, n in enumerate(shadow.ids.shape) if d not in dims]
    return shadow if call.get("keepdim") else shadow.shaped(kept)


def _normed(t: Tracer, ndim: int) -> list[int]:
    """The dimension over which the layer that runs takes its mean, if it is an RMS norm."""
    kind = t.norm_kinds.get(t.stack[-1]) if t.stack else None
    return [] if kind is None else [kind.dim % ndim]


def _mean_of_squares(t: Tracer, shadow: Shadow) -> None:
    """Over channels that are zero: surgery makes up for the smaller number of them."""
    flat = shadow.shaped((-1,))
    t.consume(flat)
    seen = t.normed.setdefault(t.stack[-1], flat.ids)
    if seen is not flat.ids:
        t.book.union(seen, flat.ids, "one RMS norm serves it and channels that must stay")


def _dims(chosen: int | Sequence[int] | None, ndim: int) -> list[int]:
    if isinstance(chosen, int):
        return [chosen % ndim]
    return [d % ndim for d in chosen] if chosen else list(range(ndim))


def moved(t: Tracer, call: Call) -> Outcome:
    """flip, roll: positions change places; channels must not."""
    x = first(call)
    shadow = t.shadow(x)
    if set(_dims(call["dims"], x.ndim)) & set(shadow.varying):
        return None
    return shadow


def softmax(t: Tracer, call: Call) -> Outcome:
    """Nothing stays zero; along the channels it needs them all."""
    x = first(call)
    shadow = t.shadow(x)
    dim = call["dim"] % x.ndim
    if len(shadow.varying) > 1:
        shadow = t.tied(shadow, (dim,), call.name)
    if dim in shadow.varying:
        t.book.pin(shadow.ids, f"{call.name} runs over its channels")
    return shadow.coded(t.book.code(f"{call.name} is not zero"))
