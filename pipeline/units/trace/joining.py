"""Operators that cut tensors apart and put them together."""

from __future__ import annotations

import numpy as np

from pipeline.units.trace.calls import Call
from pipeline.units.trace.layout import first, value_of
from pipeline.units.trace.shadow import FIXED, Axis, Ids, ParamView, Shadow, Value, uniform
from pipeline.units.trace.tracer import Outcome, Tracer


def _cut(t: Tracer, call: Call, dim: int, index: slice) -> Value:
    """Part of a dimension. Of channels a run of neighbours: the smaller forward tells whether the
    code finds it at other widths."""
    value, size = value_of(t, call), first(call).shape[dim]
    if isinstance(value, ParamView):
        axis = value.axes[dim]
        cut = None if axis is None else Axis(axis.dim, axis.positions[index])
        return ParamView(value.name, (*value.axes[:dim], cut, *value.axes[dim + 1 :]))
    if len(value.varying) > 1 and value.ids.shape[dim] > 1:
        nonzero = t.book.plain(value).nonzero[(slice(None),) * dim + (index,)]
        return Shadow(
            t.tied(value, (dim,), call.name).ids, nonzero.max(axis=dim, keepdims=True, initial=0)
        )
    if value.ids.shape[dim] == 1 or index.indices(size) == (0, size, 1):
        return value
    part = value.at((slice(None),) * dim + (index,))
    if call.name != "slice" or index.step not in (None, 1):
        t.book.pin(value.ids, f"{call.name} cuts its channels at a fixed position")
    else:
        t.parts.append(value.ids)
    return part


def slice_(t: Tracer, call: Call) -> Outcome:
    """x[start:end:step] along one dimension."""
    dim = call["dim"] % first(call).ndim
    return _cut(t, call, dim, slice(call["start"], call["end"], call["step"]))


def select(t: Tracer, call: Call) -> Outcome:
    """x[i]: one position, the dimension goes."""
    x, dim = first(call), call["dim"] % first(call).ndim
    i = call["index"] % x.shape[dim]
    value = _cut(t, call, dim, slice(i, i + 1))
    if isinstance(value, ParamView):
        return ParamView(value.name, (*value.axes[:dim], *value.axes[dim + 1 :]))
    return value.shaped(value.ids.shape[:dim] + value.ids.shape[dim + 1 :])


def split(t: Tracer, call: Call) -> Outcome:
    """Consecutive parts. Equal parts of a channel dimension keep equal widths: position k of every
    part is one unit. Parts of given widths are apart."""
    x, dim = first(call), call["dim"] % first(call).ndim
    sizes = [o.shape[dim] for o in call.outs]
    starts = np.cumsum([0, *sizes])
    value = value_of(t, call)
    if isinstance(value, ParamView) or value.ids.shape[dim] == 1 or len(sizes) == 1:
        cuts = zip(starts[:-1], starts[1:], strict=True)
        return [_cut(t, call, dim, slice(int(a), int(b))) for a, b in cuts]
    if len(set(sizes)) > 1 or call.name != "split":
        if call.name == "split":  # a remainder: its width follows from no number
            t.book.pin(value.ids, f"{call.name} cuts its channels at a fixed position")
        full = value.spread(x.shape, (dim,))
        lead = (slice(None),) * dim
        apart: list[Value] = [
            full.at((*lead, slice(int(a), int(b))))
            for a, b in zip(starts, starts[1:], strict=False)
        ]
        t.parts.append(full.ids)
        return apart
    parts = [value.at((slice(None),) * dim + (slice(a, a + sizes[0]),)) for a in starts[:-1]]
    for part in parts:
        t.book.union(part.ids, parts[0].ids, "split joins it with channels that must stay")
    return [Shadow(parts[0].ids, part.residue).narrow() for part in parts]


def glu(t: Tracer, call: Call) -> Outcome:
    """One half times the sigmoid of the other: position k of both is one unit."""
    x, dim = first(call), call["dim"] % first(call).ndim
    shadow, width = t.shadow(x), first(call).shape[dim] // 2
    if shadow.ids.shape[dim] == 1:
        return shadow
    full = shadow.spread(x.shape, (dim,))
    one, other = (
        full.at((slice(None),) * dim + (slice(start, start + width),)) for start in (0, width)
    )
    ids = t.book.union(one.ids, other.ids, "glu joins it with channels that must stay")
    return Shadow(ids, one.residue)


def unbind(t: Tracer, call: Call) -> Outcome:
    """One output per position."""
    x, dim = first(call), call["dim"] % first(call).ndim
    values: list[Value] = []
    for i in range(x.shape[dim]):
        value = _cut(t, call, dim, slice(i, i + 1))
        if isinstance(value, ParamView):
            values.append(ParamView(value.name, (*value.axes[:dim], *value.axes[dim + 1 :])))
        else:
            values.append(value.shaped(value.ids.shape[:dim] + value.ids.shape[dim + 1 :]))
    return values


def cat(t: Tracer, call: Call) -> Outcome:
    """Joined along the channels, or channels joined with each other along another dimension."""
    tensors = [x for x in call.tensors if x.ndim > 1 or x.shape[0] > 0]
    dim = call["dim"] % tensors[0].ndim
    varying = {d for x in tensors if t.param(x) is None for d in t.shadow(x).varying}
    if all(x.ndim == 1 and t.param(x) is not None for x in tensors):
        varying = {0}  # biases of queries, keys and values
    shadows = [t.shadow(x, varying) for x in tensors]
    if varying <= {dim}:
        full = [s.spread(x.shape, (dim,)) for s, x in zip(shadows, tensors, strict=True)]
        ids = np.concatenate([s.ids for s in full], dim)
        return Shadow(ids, np.concatenate([s.nonzero for s in full], dim)).narrow()
    if dim in varying:
        dims = sorted(varying)
        wide = [s.spread(x.shape, dims) for s, x in zip(shadows, tensors, strict=True)]
        whole = Shadow(*(np.concatenate(p, dim) for p in zip(*_pairs(wide), strict=True)))
        t.book.split(whole.ids)
        return whole
    shape = np.broadcast_shapes(*(s.ids.shape for s in shadows))
    ids = np.broadcast_to(shadows[0].ids, shape)
    for shadow in shadows[1:]:
        ids = t.book.union(ids, shadow.ids, "cat joins it with channels that must stay")
    if len(codes := {s.code for s in shadows}) > 1 or None in codes:
        shadows = [t.book.plain(s) for s in shadows]  # one constant beside another is none
    nonzero = np.stack([np.broadcast_to(s.nonzero, shape) for s in shadows]).max(axis=0)
    return Shadow(ids, nonzero)


def _pairs(shadows: list[Shadow]) -> list[tuple[Ids, Ids]]:
    return [(s.ids, s.nonzero) for s in shadows]


def stack(t: Tracer, call: Call) -> Outcome:
    """Equal tensors side by side in a new dimension: their channels are joined."""
    dim = call["dim"] % call.outs[0].ndim
    varying = {d for x in call.tensors if t.param(x) is None for d in t.shadow(x).varying}
    shadows = [t.shadow(x, varying or None) for x in call.tensors]
    shape = np.broadcast_shapes(*(s.ids.shape for s in shadows))
    ids = np.broadcast_to(shadows[0].ids, shape)
    for shadow in shadows[1:]:
        ids = t.book.union(ids, shadow.ids, "stack joins it with channels that must stay")
    nonzero = np.stack([np.broadcast_to(s.nonzero, shape) for s in shadows]).max(axis=0)
    return Shadow(np.expand_dims(ids, dim), np.expand_dims(nonzero, dim))


def pad(t: Tracer, call: Call) -> Outcome:
    """Padding of an image; padded channels are zeros that must stay."""
    x, amounts = first(call), call["pad"]
    widths = [(0, 0)] * x.ndim
    for i in range(len(amounts) // 2):
        widths[x.ndim - 1 - i] = (amounts[2 * i], amounts[2 * i + 1])
    shadow = t.shadow(x)
    grown = [d for d in shadow.varying if widths[d] != (0, 0)]
    zero = call.get("value") in (None, 0, 0.0)
    if any(min(widths[d]) < 0 for d in grown) or (grown and not zero):
        t.book.pin(shadow.ids, "padding cuts or fills its channels")
        return uniform(x.ndim, t.book.code("it meets padding"))
    if not zero and any(widths[d] != (0, 0) for d in range(x.ndim)):
        return shadow.coded(t.book.code("padded with a constant"))
    inner = [widths[d] if d in grown else (0, 0) for d in range(x.ndim)]
    ids = np.pad(shadow.ids, inner, constant_values=FIXED)
    return Shadow(ids, np.pad(shadow.nonzero, inner, constant_values=0))
