"""Operators that move values without changing them: they run on the shadow itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.units.trace.calls import Call
from pipeline.units.trace.shadow import (
    Axis,
    ParamView,
    Shadow,
    Value,
    along,
    blocks,
    uniform,
)
from pipeline.units.trace.tracer import Outcome, Tracer


def first(call: Call) -> Tensor:
    return call.tensors[0]


def value_of(t: Tracer, call: Call) -> Value:
    return t.param(first(call)) or t.shadow(first(call))


def same_layout(t: Tracer, call: Call) -> Outcome:
    """Every output position holds the input's (clone, cast, detach)."""
    view = t.param(first(call))
    vector = view is not None and len(view.axes) == 1 and view.name in t.book.trained
    if vector and call.name == "clone":
        return t.shadow(first(call))  # the copy may be written to, the parameter is not
    return value_of(t, call)


def as_strided(t: Tracer, call: Call) -> Outcome:
    """Pooling marks its result as channels-last that way, with every element where it was."""
    return value_of(t, call) if call.relaid else None


def zeros_like(t: Tracer, call: Call) -> Outcome:
    """As wide as its argument, whatever that loses."""
    shadow = t.shadow(first(call))
    return shadow.coded(0)


def filled_like(t: Tracer, call: Call) -> Outcome:
    """As wide as its argument, not zero."""
    shadow = t.shadow(first(call))
    return shadow.coded(t.book.code(f"made by {call.name}"))


def constant(t: Tracer, call: Call) -> Outcome:
    """Nothing tracked enters."""
    zero = call.name in ("zeros", "zero", "new_zeros", "zeros_like")
    code = 0 if zero else t.book.code("it meets a constant")
    return [uniform(o.ndim, code) for o in call.outs]


def fixed_zeros(t: Tracer, call: Call) -> Outcome:
    """Zeros of a size written in the code."""
    del t
    return uniform(call.outs[0].ndim, 0)


def permute(t: Tracer, call: Call) -> Outcome:
    """permute, transpose, t."""
    ndim = first(call).ndim
    order = list(range(ndim))
    if call.name == "permute":
        order = [d % ndim for d in call["dims"]]
    elif call.name == "t":
        order = order[::-1]
    else:
        a, b = call["dim0"] % ndim, call["dim1"] % ndim
        order[a], order[b] = b, a
    value = value_of(t, call)
    if isinstance(value, ParamView):
        return ParamView(value.name, tuple(value.axes[d] for d in order))
    return value.permute(order)


def view(t: Tracer, call: Call) -> Outcome:
    """view, reshape, squeeze, unsqueeze, flatten: anything that keeps the order of elements.

    A channel dimension that is split loses positions of only one of its parts: see `Book.split`.
    """
    old, new = tuple(first(call).shape), tuple(call.outs[0].shape)
    if math.prod(old) == 0 or math.prod(new) != math.prod(old):
        return None
    value = value_of(t, call)
    if isinstance(value, ParamView):
        seen = _view_param(t, value, old, new)
        if seen is not None or len(value.wide) != 1 or value.name not in t.book.trained:
            return seen
        value = t.shadow(first(call))  # a bias of all heads, one head after the other
    pieces = blocks(old, new)
    varying = [(a, b) for a, b in pieces if any(n > 1 for n in value.ids.shape[a])]
    grown = value.spread(old, [d for a, _ in varying for d in range(a.start, a.stop)])
    sizes = [1] * len(new)
    for _, b in varying:
        sizes[b] = new[b]
    shadow = grown.shaped(sizes)
    for a, b in varying:
        wide = [n for n in sizes[b] if n > 1]
        if len(wide) > 1 and wide != [n for n in old[a] if n > 1]:
            t.book.split(shadow.ids)
    return shadow.narrow()


def _view_param(t: Tracer, value: ParamView, old: tuple[int, ...], new: tuple[int, ...]) -> Outcome:
    """Dimensions of size 1 may come and go, and those that only repeat it may be cut anew."""
    del t
    axes: tuple[Axis | None, ...] = ()
    for a, b in blocks(old, new):
        wide = [(axis, n) for axis, n in zip(value.axes[a], old[a], strict=True) if n > 1]
        repeats = all(axis is None for axis, _ in wide)
        if not repeats and [n for _, n in wide] != [n for n in new[b] if n > 1]:
            return None
        kept = iter(axis for axis, _ in wide)
        axes += tuple(next(kept) if n > 1 and not repeats else None for n in new[b])
    if max(new, default=1) == 1 and math.prod(old) == 1:
        single = next((a for a in value.axes if a is not None), None)
        axes = (single,) + axes[1:] if new else axes
    return ParamView(value.name, axes)


def expand(t: Tracer, call: Call) -> Outcome:
    """Dimensions of size 1 grow; what varies stays."""
    value, lead = value_of(t, call), call.outs[0].ndim - first(call).ndim
    if isinstance(value, ParamView):
        grown = zip(call.outs[0].shape[lead:], value.axes, strict=True)
        kept = (a if a is not None and a.positions.size == n else None for n, a in grown)
        return ParamView(value.name, (None,) * lead + tuple(kept))
    return value.shaped((1,) * lead + value.ids.shape)


def repeat(t: Tracer, call: Call) -> Outcome:
    """Whole copies one after the other."""
    x, times = first(call), call["repeats"]
    shadow = t.shadow(x)
    shadow = shadow.shaped((1,) * (len(times) - x.ndim) + shadow.ids.shape)
    tiles = [k if n > 1 else 1 for k, n in zip(times, shadow.ids.shape, strict=True)]
    return Shadow(np.tile(shadow.ids, tiles), np.tile(shadow.nonzero, tiles))


def index(t: Tracer, call: Call) -> Outcome:
    """x[i, j, ...] by tensors of positions: a lookup, whose other dimensions pass.

    A table of parameters gives its columns, as an embedding does.
    """
    x, places = first(call), call["indices"]
    chosen = [d for d, place in enumerate(places) if place is not None]
    sizes = [place for place in places if place is not None]
    if not chosen or any(t.param(p) is None and t.shadow(p).varying for p in sizes):
        return None
    taken = {d for d, p in zip(chosen, sizes, strict=True) if p.dtype != torch.bool or p.ndim == 1}
    if len(taken) < len(chosen) or chosen != list(range(chosen[0], chosen[-1] + 1)):
        return None
    shadow = _columns(t, x, taken)
    if shadow is None or taken & set(shadow.varying):
        return None
    new = [1] * (call.outs[0].ndim - x.ndim + len(chosen))
    ids = shadow.ids.shape
    return shadow.shaped((*ids[: chosen[0]], *new, *ids[chosen[-1] + 1 :]))


def index_add(t: Tracer, call: Call) -> Outcome:
    """Rows added to rows: channels of both are joined."""
    x, source = t.shadow(call["self"]), t.shadow(call["source"])
    if {call["dim"] % x.ndim} & {*x.varying, *source.varying}:
        return None
    ids = t.book.union(x.ids, source.ids, "index_add joins it with channels that must stay")
    return Shadow(ids, np.broadcast_to(np.maximum(x.nonzero, source.nonzero), ids.shape))


def roi_align(t: Tracer, call: Call) -> Outcome:
    """Regions of an image, channel by channel."""
    x, regions = t.shadow(call["input"]), t.shadow(call["rois"])
    t.book.pin(regions.ids, "regions of roi_align")
    return x if set(x.varying) <= {1} else None


def _columns(t: Tracer, x: Tensor, taken: set[int]) -> Shadow | None:
    """Shadow of what is looked up; of a parameter, along its one wide dimension that is not."""
    view = t.param(x)
    if view is None:
        return t.shadow(x)
    wide = [d for d in view.wide if d not in taken]
    axis = view.axes[wide[0]] if len(wide) == 1 else None
    if axis is None:
        return None if wide else t.shadow(x, ())
    ids = t.book.axis_ids(view.name, axis, "producer")
    return along(ids, t.residue(view), x.ndim, wide[0])


def channel_shuffle(t: Tracer, call: Call) -> Outcome:
    """(groups, width) -> (width, groups): position k of every group is one unit."""
    x = t.channels(first(call), 1, "channel shuffle")
    parts = x.shaped((call["groups"], -1))
    t.book.union(parts.ids, parts.ids[:1], "channel shuffle joins it with channels that must stay")
    ids = np.repeat(parts.ids[0], call["groups"])
    return along(ids, parts.nonzero.T.ravel(), first(call).ndim, 1)


def pixel_shuffle(t: Tracer, call: Call) -> Outcome:
    """Blocks of r * r channels become one."""
    x = t.channels(first(call), -3, "pixel shuffle")
    parts = x.shaped((-1, call["upscale_factor"] ** 2))
    ids = t.book.union(parts.ids, parts.ids[:, :1], "pixel shuffle mixes it with fixed channels")
    ndim = first(call).ndim
    return along(ids[:, 0], parts.nonzero.max(axis=1), ndim, ndim - 3)


def pixel_unshuffle(t: Tracer, call: Call) -> Outcome:
    """One channel becomes a block of r * r."""
    x = t.channels(first(call), -3, "pixel unshuffle")
    block, ndim = call["downscale_factor"] ** 2, first(call).ndim
    return along(np.repeat(x.ids, block), np.repeat(x.nonzero, block), ndim, ndim - 3)
