"""Matrix products of two activations: attention and its relatives.

Scores are q @ k.T, the result softmax(scores) @ v. A unit is a whole head, or one feature of all
heads, because the heads of a layer are one tensor and must stay equally wide.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipeline.units.trace.calls import Call
from pipeline.units.trace.shadow import FIXED, Ids, Shadow, along, uniform
from pipeline.units.trace.tracer import Outcome, Tracer

OP = "a product of activations"


def contraction(t: Tracer, a: Tensor, b: Tensor) -> Shadow:
    """(..., m, k) @ (..., k, n), with the head in a leading dimension if there is one.

    Heads: what varies within a head is one unit, and both factors' heads are joined.
    Features: heads are joined; position k of both factors is one unit; m or n passes through,
    unless only queries and keys may lose features: what passes through is values.
    """
    x, y = t.shadow(a), t.shadow(b)
    if t.attention == "none":
        for shadow in (x, y):
            t.book.pin(shadow.ids, "attention is left whole (attention='none')")
        return uniform(a.ndim, t.book.code(f"it meets {OP}"))
    lead = range(a.ndim - 2)
    if any(d in lead for d in (*x.varying, *y.varying)):
        if t.attention == "heads":
            return _by_head(t, x, y, a.shape)
        x, y = t.tied(x, lead, OP), t.tied(y, lead, OP)
    return _by_feature(t, x, y, (a.shape, b.shape))


def _by_head(t: Tracer, x: Shadow, y: Shadow, shape: tuple[int, ...]) -> Shadow:
    x, y = (t.tied(s, (s.ndim - 2, s.ndim - 1), OP) for s in (x, y))
    ids = t.book.union(x.ids, y.ids, f"{OP} joins it with heads that must stay")
    zero = (x.nonzero == 0) | (y.nonzero == 0)
    lead = tuple(d for d in range(ids.ndim) if ids.shape[d] > 1)
    _remember(t, Shadow(ids, ids), shape, lead)
    return Shadow(ids, np.where(zero, 0, np.maximum(x.nonzero, y.nonzero)))


def _by_feature(
    t: Tracer, x: Shadow, y: Shadow, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Shadow:
    m, k = x.ndim - 2, x.ndim - 1
    if k in x.varying:
        x = t.tied(x, (m,), OP)
    if m in y.varying:  # its contracted dimension stands there
        y = t.tied(y, (k,), OP)
    if k in x.varying or m in y.varying:
        _contract(t, x.spread(shapes[0], (k,)), y.spread(shapes[1], (m,)))
    rows, columns = m in x.varying, k in y.varying
    if rows and columns:
        for shadow in (x, y):
            t.book.pin(shadow.ids, f"{OP} has channels on both sides")
    elif rows or columns:
        kept, shape, dim = (x, shapes[0], m) if rows else (y, shapes[1], k)
        if t.attention == "query_key":
            t.book.pin(kept.ids, "values are left whole (attention='query_key')")
        flat = kept.spread(shape, (dim,)).shaped((-1,))
        _remember(t, kept, shape, (dim,))
        return along(flat.ids, flat.residue, x.ndim, dim)
    return uniform(x.ndim, t.book.code(f"it meets {OP}"))


def _contract(t: Tracer, x: Shadow, y: Shadow) -> None:
    """A feature can go when its product is zero, so when one of the factors is."""
    left, right = x.ids.ravel(), y.ids.ravel()
    ids = t.book.union(left, right, f"{OP} joins it with features that must stay")
    t.consume(Shadow(ids, np.minimum(x.nonzero.ravel(), y.nonzero.ravel())))
    t.products.setdefault(t.product_number, []).append((ids.size, ids))


def _remember(t: Tracer, shadow: Shadow, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    """The product costs in proportion to what is left along these dimensions."""
    if dims:
        ids: Ids = shadow.spread(shape, dims).ids.ravel()
        t.products.setdefault(t.product_number, []).append((ids.size, ids))


def with_offset(t: Tracer, call: Call, result: Shadow) -> Outcome:
    """baddbmm: scores plus a mask of the same shape, unless beta leaves it out."""
    if call["beta"] == 0:
        return result
    mask = t.shadow(call["self"])
    mask = mask.shaped((1,) * (result.ndim - mask.ndim) + mask.ids.shape)
    ids = t.book.union(result.ids, mask.ids, "baddbmm joins it with channels that must stay")
    fixed = t.book.code(f"it meets what is added to {OP}")
    zero = (result.nonzero == 0) & (mask.nonzero == 0) & (ids != FIXED)
    return Shadow(ids, np.where(zero, 0, fixed))
