"""Which channels of any network live and die together: from the ATen calls of one forward."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from pipeline.units.experts.find import Calls, expert_candidates
from pipeline.units.frozen import STATISTICS, is_frozen_norm
from pipeline.units.groups import NormScale, Units
from pipeline.units.module_state import hooks_of
from pipeline.units.modules import tensors_in as tensors_in_layers
from pipeline.units.rms_norms import holds, norm_kinds
from pipeline.units.trace.book import Book
from pipeline.units.trace.calls import tensors_in
from pipeline.units.trace.demand.numbers import Numbers
from pipeline.units.trace.forward import Forward, module_stack
from pipeline.units.trace.leftovers import resolve
from pipeline.units.trace.pointwise import stays_zero
from pipeline.units.trace.rules import RULES, generic
from pipeline.units.trace.shadow import Axis, ParamView, Shadow, uniform
from pipeline.units.trace.skipped.follower import Follower
from pipeline.units.trace.smaller.attributes import share
from pipeline.units.trace.smaller.search import Search
from pipeline.units.trace.tracer import INPUT, OUTPUT, Attention, Tracer
from pipeline.units.trace.whole.branches import Flow
from pipeline.units.trace.whole.experts import with_experts

__all__ = ["trace_units"]

LITTLE = 1 << 18
"""Elements of a network and its example up to which it computes faster than shapes are found."""

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def trace_units(
    model: nn.Module,
    example_inputs: Any,
    never_prune: tuple[str, ...] = (),
    attention: Attention = "heads",
    branches: bool = False,
) -> Units:
    """Channel groups of `model`, found by following one forward pass in evaluation mode.

    What can be pruned is proved by the rules of the operators and by a second, smaller forward;
    what is not understood is reported unprunable, with the reason. The model is not changed.

    What the evaluation mode never runs (the auxiliary heads of GoogLeNet) is not seen, and not cut.

    Args:
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        never_prune: names of modules whose outputs stay whole.
        attention: the unit of attention: "heads" (query, key, value and output of one head, with
            grouped queries one key-value head and its queries), "head_dim" (one feature of all
            heads: of query and key, and of value and output, apart where the code allows it),
            "query_key" (of query and key alone; values stay), or "none". The scale of the scores
            stays that of the dense network.
        branches: offer each branch of a residual stream, y = x + f(x), as one unit too.

    Raises:
        ValueError: `never_prune` names no module, or a lazy layer has no shape yet.
    """
    with _uncollected():
        return _found(Forward(model, example_inputs), never_prune, attention, branches)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: all that a trace makes lives to its end, and looking through it
    time and again takes a fifth of the time of a trace."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _found(
    forward: Forward, never_prune: tuple[str, ...], attention: Attention, branches: bool
) -> Units:
    if unknown := [n for n in never_prune if n not in forward.layers]:
        known = ", ".join(n for n in forward.layers if n)
        raise ValueError(f"never_prune: no module {', '.join(unknown)} (modules: {known})")
    _check_materialised(forward)
    tracer = _traced(forward, never_prune, attention, branches)
    _pin_shared_norms(forward, tracer)
    leftovers = resolve(tracer, forward.layers)
    tracer.book.settle()
    grouping, attributes = Search(forward, tracer).run()
    products = {
        number: tuple(s for _, ids in parts if (s := share(ids, grouping)) and s.per_unit)
        for number, parts in tracer.products.items()
    }
    groups, more = with_experts(forward, tracer, grouping, never_prune)
    norms = tuple(
        NormScale(path, tracer.norm_kinds[path], own)
        for path, ids in tracer.normed.items()
        if (own := share(ids, grouping)) and own.per_unit
    )
    elsewhere = frozenset(tracer.read_elsewhere)
    if tracer.flow is not None:
        groups += tuple(tracer.flow.branches(tracer.book.shapes))
    found = (*attributes, *more)
    return Units(_weights(forward, tracer), groups, found, products, elsewhere, norms, leftovers)


def _check_materialised(forward: Forward) -> None:
    lazy = [name for name, x in tensors_in_layers(forward.named).items() if is_lazy(x)]
    if lazy:
        raise ValueError(
            f"lazy layers have no shapes yet ({', '.join(lazy)}): run the model once on the "
            "example, then trace it"
        )


def _traced(
    forward: Forward, never_prune: tuple[str, ...], attention: Attention, branches: bool
) -> Tracer:
    """On shapes alone if that is possible, with numbers on demand for a network that reads values,
    else on its own tensors, which raises again what the code of the network raised."""
    with suppress(Exception):
        return _trace(forward, never_prune, attention, branches)
    if forward.elements > LITTLE:
        forward.numbers = Numbers()
        with suppress(Exception):
            return _trace(forward, never_prune, attention, branches)
    forward.meta, forward.numbers = False, None
    return _trace(forward, never_prune, attention, branches)


def _trace(
    forward: Forward, never_prune: tuple[str, ...], attention: Attention, branches: bool
) -> Tracer:
    tensors = forward.tensors()
    first_name = {id(x): name for name, x in reversed(tensors.items())}
    trained = frozenset(first_name[id(tensors[n])] for n in forward.parameters())
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    tracer = Tracer(Book(shapes, trained), RULES, generic, attention)
    tracer.flow = Flow(trained, stays_zero) if branches else None
    tracer.book.statistics = frozenset(
        f"{path}.{key}" if path else key
        for path, layer in forward.layers.items()
        for key in (STATISTICS if is_frozen_norm(layer) else ())
    )
    tracer.norm_groups = {
        f"{path}.weight" if path else "weight": m.num_groups
        for path, m in forward.layers.items()
        if isinstance(m, nn.GroupNorm)
    }
    positions = np.arange(max((max(s, default=1) for s in shapes.values()), default=1))
    axes: dict[tuple[int, int], Axis] = {}
    for name, x in tensors.items():
        for d, n in enumerate(shapes[name]):
            if (d, n) not in axes:
                axes[d, n] = Axis(d, positions[:n], whole=True)
        own = tuple([axes[at] for at in enumerate(shapes[name])])
        tracer.put(x, ParamView(first_name[id(x)], own))

    def seen(inputs: Any) -> None:
        for x in tensors_in(inputs):
            tracer.put(x, uniform(x.ndim, tracer.book.code(f"it meets {INPUT}")))

    tracer.norm_kinds = norm_kinds(forward.layers)
    tracer.owners = forward.owners(tensors, first_name)
    tracer.experts = expert_candidates(forward.layers)
    tracer.calls = Calls(forward.layers, tracer.experts)
    tracer.numbers = forward.numbers
    watched_paths = (*never_prune, *tracer.calls.watched, *tracer.norm_kinds)
    watched_layers = (forward.layers[path] for path in watched_paths)
    hooks = set().union(*map(hooks_of, watched_layers))
    watched = _watched(forward, never_prune, tracer)
    with watched, tracer.calls.watching(), module_stack(forward.layers) as tracer.stack:
        first_steps = partial(forward.sequences.install, Follower(tracer))
        outputs = forward.run(tensors, tracer, seen, first_steps, hooks)
    if forward.numbers is not None:
        tracer.calls.inputs = forward.numbers.integers(tracer.calls.inputs)
    if tracer.flow is not None:
        tracer.flow.close(tensors_in(outputs))
    _pin(tracer, outputs, OUTPUT)
    _lock_beside_unused(tracer)
    return tracer


def _lock_beside_unused(tracer: Tracer) -> None:
    """Where values decide what runs, an expert that did not run reads what its siblings read."""
    if not any(step.decided for step in tracer.steps):
        return
    used = {view.name for step in tracer.steps for view in step.entered.views}
    beside = {NUMBER.sub("*", name): name for name in tracer.book.shapes if name not in used}
    for name in used:
        if (other := beside.get(NUMBER.sub("*", name))) is not None:
            tracer.book.lock(name, f"{other} beside it did not run on the example")


@contextmanager
def _watched(forward: Forward, never_prune: tuple[str, ...], tracer: Tracer) -> Iterator[None]:
    """Hooks that pin what the named modules return, and what norms by a mean read where they are
    called in a way that they were not tried in."""
    handles: list[Any] = [
        forward.layers[name].register_forward_hook(
            lambda _m, _i, out, name=name: _pin(tracer, out, f"never_prune names {name}")
        )
        for name in never_prune
    ]

    def called(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = [*tracer.stack]
        with _disable_current_modes():
            right = holds(layer, tracer.norm_kinds[path], args, kwargs)
        tracer.stack[:] = stack  # an exception leaves modules on it
        if not right:
            _pin(tracer, [*args, *kwargs.values()], "a norm by a mean takes more than its input")

    for path in tracer.norm_kinds:
        layer = forward.layers[path]
        hook = partial(called, path)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pin_shared_norms(forward: Forward, tracer: Tracer) -> None:
    """Surgery scales the weight of a norm by a mean, which only norms of its kind may read."""
    names = {id(x): name for name, x in forward.parameters().items()}
    kinds = {p: (k.offset, k.power) for p, k in tracer.norm_kinds.items()}
    for path, ids in tracer.normed.items():
        kind = tracer.norm_kinds[path]
        name = names[id(forward.layers[path]._parameters[kind.weight])]
        others = {kinds.get(owner) for owner in tracer.owners[name]}
        if name in tracer.read_elsewhere or len(others) > 1:
            tracer.book.pin(ids, f"other code than a norm by a mean reads {name}")


def _pin(tracer: Tracer, outputs: Any, reason: str) -> None:
    for tensor in tensors_in(outputs):
        value = tracer.values.get(id(tensor))
        if isinstance(value, Shadow):
            tracer.book.pin(value.ids, reason)
        elif value is not None:
            tracer.lock(value, reason)


def _weights(forward: Forward, tracer: Tracer) -> tuple[str, ...]:
    """Weights of convolution and linear layers, used in the forward or not, in model order; without
    those that another weight is computed from, where a zero need not stay one."""
    kinds = (_ConvNd, nn.Linear)
    layers = {
        id(m._parameters.get("weight")) for m in forward.layers.values() if isinstance(m, kinds)
    }
    named = {n: p for n, p in forward.parameters().items() if n not in tracer.remade}
    return tuple(n for n, p in named.items() if n in tracer.multiplied or id(p) in layers)
