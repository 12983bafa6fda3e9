"""Operators with weights: convolutions, linear layers, embeddings, normalisations."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pipeline.units.trace.attention import contraction, with_offset
from pipeline.units.trace.calls import Call
from pipeline.units.trace.leftovers import consume_into
from pipeline.units.trace.shadow import FIXED, Axis, Ids, ParamView, Shadow, along, uniform, worse
from pipeline.units.trace.tracer import Outcome, Tracer


def convolution(t: Tracer, call: Call) -> Outcome:
    """Plain, grouped, depthwise; transposed or not. Channels stand in dimension 1."""
    view = t.param(call["weight"])
    if view is None:
        return _computed(t, call, (call["input"], call["weight"], call["bias"]), 1)
    if view.axes[0] is None or view.axes[1] is None:
        return None
    t.multiplied.add(view.name)
    x = t.channels(call["input"], 1, "convolution")
    groups, ndim = call["groups"], call["input"].ndim
    if groups > 1 and groups == call["input"].shape[1]:
        flat = _depthwise(t, call, view, x)
    else:
        if call["transposed"] or any(call["padding"]):  # at the rim other inputs are read
            t.consume(x)
        else:
            consume_into(t, x, view, 1, call["bias"])
        ids = _mix(t, call, view, x.ids)
        masked = t.residue(view)
        bias = t.attach(call["bias"], ids, "producer", "convolution")
        flat = Shadow(ids, worse(masked, bias))
    return along(flat.ids, flat.residue, ndim, 1)


def _mix(t: Tracer, call: Call, view: ParamView, ids: Ids) -> Ids:
    """Ids of the outputs of a convolution that sums over channels.

    With several groups the k-th channel of every group is one unit, so that all groups keep equal
    widths and their number stays.
    """
    groups, transposed = call["groups"], call["transposed"]
    inner, outer = (view.axes[0], view.axes[1]) if transposed else (view.axes[1], view.axes[0])
    assert inner is not None
    assert outer is not None
    if groups == 1:
        t.book.tie(view.name, inner, ids, "consumer")
        return t.book.axis_ids(view.name, outer, "producer")
    reason = "a grouped convolution joins it with channels that must stay"
    parts = ids.reshape(groups, -1)
    first = t.book.union(parts, parts[:1], reason)
    positions = inner.positions if transposed else np.tile(inner.positions, groups)
    t.book.tie(view.name, Axis(inner.dim, positions), first.ravel(), "consumer")
    made = t.book.axis_ids(view.name, outer, "producer")
    if transposed:
        return np.tile(made, groups)
    by_group = made.reshape(groups, -1)
    t.book.union(by_group, by_group[:1], reason)
    return np.tile(by_group[0], groups)


def _depthwise(t: Tracer, call: Call, view: ParamView, x: Shadow) -> Shadow:
    """Every channel is filtered alone, so the weight scales and the output belongs to the input."""
    times = call.outs[0].shape[1] // x.ids.size
    ids = x.ids if times == 1 else np.repeat(x.ids, times)
    axis = view.axes[0]
    assert axis is not None
    t.book.tie(view.name, axis, x.ids if call["transposed"] else ids, "norm")
    bias = t.attach(call["bias"], ids, "norm", "convolution")
    kept: Ids | int = t.residue(view)
    if kept:
        kept = np.repeat(x.nonzero, times) if x.code is None else x.code
    return Shadow(ids, _after_scale(t, ids, worse(kept, bias)))


def _after_scale(t: Tracer, ids: Ids, residue: Ids | int) -> Ids | int:
    """A masked scale makes a unit zero, but not the positions that belong to none."""
    fixed = t.book.code("it meets channels that must stay")
    if isinstance(residue, int) and np.count_nonzero(ids) == ids.size:
        return residue
    return np.where(ids == FIXED, fixed, residue)


def baddbmm(t: Tracer, call: Call) -> Outcome:
    """self + batch1 @ batch2."""
    if t.param(call["batch1"]) is not None or t.param(call["batch2"]) is not None:
        return None
    return with_offset(t, call, contraction(t, call["batch1"], call["batch2"]))


def addmm(t: Tracer, call: Call) -> Outcome:
    """bias + a @ b."""
    return _product(t, call, call["mat1"], call["mat2"], call["self"])


def mm(t: Tracer, call: Call) -> Outcome:
    """a @ b, batched or not."""
    return _product(t, call, call["self"], call["mat2"], None)


def _product(t: Tracer, call: Call, a: Tensor, b: Tensor, bias: Tensor | None) -> Outcome:
    """Matrix product of an activation and a weight, in either order.

    In a batched product the weight is one matrix repeated.
    """
    left = t.param(b) is None
    data, weight = (b, a) if left else (a, b)
    view = t.param(weight)
    if view is None and t.makers(b) and not (bias is None and t.shadow(b).varying):
        return _computed(t, call, (a, b, bias), -1)
    if view is None and bias is None:
        return contraction(t, a, b)
    if view is None or t.param(data) is not None or (left and bias is not None):
        return None
    contracted, made = view.axes[-2:][::-1] if left else view.axes[-2:]
    if contracted is None or made is None or any(view.axes[:-2]):
        return None
    t.multiplied.add(view.name)
    x = t.channels(data, -2 if left else -1, call.name)
    if call.get("alpha") in (None, 1) and call.get("beta") in (None, 1):
        consume_into(t, x, view, contracted.dim, bias)
    else:  # the bias and what is read count differently
        t.consume(x)
    t.book.tie(view.name, contracted, x.ids, "consumer")
    ids = t.book.axis_ids(view.name, made, "producer")
    if view.name in t.read_elsewhere:  # or its cost would be counted with the layer that owns it
        t.products[t.product_number] = [(x.ids.size, x.ids), (ids.size, ids)]
    residue = worse(t.residue(view), t.attach(bias, ids, "producer", "linear"))
    return along(ids, residue, data.ndim, -2 if left else -1)


def linear(t: Tracer, call: Call) -> Outcome:
    """x @ weight.T + bias over the last dimension."""
    view = t.param(call["weight"])
    if view is None:
        return _computed(t, call, (call["input"], call["weight"], call["bias"]), -1)
    if view.axes[0] is None or view.axes[1] is None:
        return None
    t.multiplied.add(view.name)
    x = t.channels(call["input"], -1, "linear")
    consume_into(t, x, view, 1, call["bias"])
    t.book.tie(view.name, view.axes[1], x.ids, "consumer")
    ids = t.book.axis_ids(view.name, view.axes[0], "producer")
    residue = worse(t.residue(view), t.attach(call["bias"], ids, "producer", "linear"))
    ndim = call.outs[0].ndim
    return along(ids, residue, ndim, ndim - 1)


def _computed(
    t: Tracer, call: Call, operands: tuple[Tensor, Tensor, Tensor | None], dim: int
) -> Outcome:
    """A weight made from parameters in the forward: weight_norm, spectral_norm, pruning masks, any
    parametrization. What its other rows become without a channel is unknown, so both sides stay."""
    data, weight, bias = operands
    names = t.makers(weight)
    if not names:
        return None
    kind = "linear" if call.name in ("mm", "addmm") else call.name
    trained = [n for n in names if n in t.book.trained] or names
    reason = f"{kind} takes a weight that is computed from {', '.join(trained)} in the forward"
    t.book.pin(t.shadow(data).ids, reason)
    t.remade.update(names)
    t.book.locks |= dict.fromkeys(names, t.book.code(reason))  # says more than what was there
    size = call.outs[0].shape[dim]
    axis = _rows(t, names, size)
    ids = t.book.fresh(size) if axis is None else t.book.axis_ids(axis[0], axis[1], "producer")
    t.book.pin(ids, reason)
    t.attach(bias, ids, "producer", kind)
    ndim = call.outs[0].ndim
    return along(ids, t.book.code(reason), ndim, dim)


def _rows(t: Tracer, names: tuple[str, ...], size: int) -> tuple[str, Axis] | None:
    """The largest of these tensors that has a row for each of `size` channels, a parameter if one
    has."""
    shapes, trained = t.book.shapes, t.book.trained
    by_size = sorted(names, key=lambda n: (n not in trained, -int(np.prod(shapes[n]))))
    for dim in (0, 1):
        for name in by_size:
            if len(shapes[name]) > dim and shapes[name][dim] == size:
                return name, Axis(dim, np.arange(size))
    return None


def embedding(t: Tracer, call: Call) -> Outcome:
    """Rows of a table: the channels are its columns."""
    view = t.param(call["weight"])
    if view is None:
        return _computed(t, call, (call["indices"], call["weight"], None), -1)
    if view.axes[1] is None:
        return None
    ids = t.book.axis_ids(view.name, view.axes[1], "producer")
    ndim = call.outs[0].ndim
    return along(ids, t.residue(view), ndim, ndim - 1)


def batch_norm(t: Tracer, call: Call) -> Outcome:
    """Per channel (dimension 1): scale and shift are zeroed with it, statistics follow."""
    x = t.channels(call["input"], 1, "batch norm")
    scale = t.attach(call["weight"], x.ids, "norm", "batch norm")
    shift = t.attach(call["bias"], x.ids, "norm", "batch norm")
    for name in ("running_mean", "running_var"):
        t.attach(call.get(name), x.ids, "norm", "batch norm")
    inner: Ids | int = 0
    if call["weight"] is None or _any(scale):
        # Batch statistics map a constant channel to zero, running statistics do not.
        moved = t.book.code("batch norm without a trained scale shifts it by its running mean")
        inner = x.residue if call.get("training") else moved
    nonzero = _after_scale(t, x.ids, worse(inner, shift))
    return along(x.ids, nonzero, call["input"].ndim, 1)


def _any(residue: Ids | int) -> bool:
    return residue != 0 if isinstance(residue, int) else bool(residue.any())


def group_norm(t: Tracer, call: Call) -> Outcome:
    """A whole group of the normalisation is one unit; its number of groups shrinks."""
    x = t.channels(call["input"], 1, "group norm")
    groups = call["group"]
    scale = t.attach(call["weight"], x.ids, "norm", "group norm")
    shift = t.attach(call["bias"], x.ids, "norm", "group norm")
    parts = x.ids.reshape(groups, -1)
    ids = t.book.union(parts, parts[:, :1], "group norm joins it with channels that must stay")
    if groups == 1:
        t.book.pin(x.ids, "group norm takes the mean over all channels")
    view = t.param(call["weight"])
    if view is None or t.norm_groups.get(view.name) != groups:
        t.book.pin(x.ids, "group norm without a module that says its number of groups")
    inner = x.residue if call["weight"] is None or _any(scale) else 0
    ids = ids.ravel()
    return along(ids, _after_scale(t, ids, worse(inner, shift)), call["input"].ndim, 1)


def layer_norm(t: Tracer, call: Call) -> Outcome:
    """Its mean runs over the channels, so they must stay."""
    x, shape = call["input"], call["normalized_shape"]
    shadow = t.shadow(x)
    normed = range(x.ndim - len(shape), x.ndim)
    if not set(shadow.varying) <= set(normed):
        shadow = t.tied(shadow, normed, "layer norm")
    inside = [d for d in shadow.varying if d in normed]
    if inside:
        t.book.pin(shadow.ids, "layer norm takes the mean over its channels")
    if inside == [x.ndim - 1] and len(shape) == 1:
        flat = t.channels(x, -1, "layer norm")
        for name in ("weight", "bias"):
            t.attach(call[name], flat.ids, "norm", "layer norm")
    else:
        for name in ("weight", "bias"):
            if (view := t.param(call[name])) is not None:
                t.lock(view, "layer norm over several dimensions")
    code = t.book.code("layer norm shifts it")
    statistics = [uniform(o.ndim, code) for o in call.outs[1:]]
    return [shadow.coded(code), *statistics]
