"""Where the constants that zero channels leave are read (see `pipeline.units.leftovers`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.units.constant import is_plain_layer
from pipeline.units.leftovers.formula import Leftover
from pipeline.units.trace.calls import Call
from pipeline.units.trace.shadow import FIXED, Ids, ParamView, Shadow, Value
from pipeline.units.trace.tracer import Outcome, Rule, Tracer

_LAYOUT = "clone contiguous _to_copy detach alias lift_fresh view squeeze unsqueeze expand permute"
_PARTS = "transpose t slice select split split_with_sizes unbind cat mean amax amin"
_IMAGES = (
    "_adaptive_avg_pool{n}d adaptive_avg_pool{n}d max_pool{n}d_with_indices upsample_nearest{n}d "
    "reflection_pad{n}d replication_pad{n}d"
)
PASSES = frozenset(
    [*_LAYOUT.split(), *_PARTS.split()]
    + [w.format(n=n) for w in _IMAGES.split() for n in (1, 2, 3)]
)
"""Operators whose result is the constant that entered, wherever a channel was one. Behind any
other but the elementwise ones, which compute it, nothing is known of it."""

TURNS = frozenset({"t", "transpose", "permute", "view"})
"""Operators through which a layer looks at its own weight."""

PRODUCTS = frozenset({"convolution", "linear", "addmm", "mm"})

READS_VALUES = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})
"""Operators that make Python numbers of tensors: `x.max().item()`, `if x.sum() > 0`."""


@dataclass(eq=False, slots=True)
class Pending:
    """A layer that reads constants; whether its bias may take them, the whole forward tells.

    Attributes:
        ids: unit ids of what it reads; `codes`: of each, 0 where it is zero.
        inputs: codes by position of the weight's dimension `dim`.
        bias: of the same call, where it is a parameter; `given`: is there any?
    """

    weight: str
    dim: int
    ids: Ids
    codes: Ids
    inputs: Ids
    bias: str | None
    given: bool


def forgetting(name: str, rule: Rule) -> Rule:
    """`rule`, behind which constants are not known any more, unless the operator passes them."""

    def run(t: Tracer, call: Call) -> Outcome:
        outcome = rule(t, call)
        if not t.book.formulas or outcome is None or (name in PASSES and _keeps_numbers(call)):
            return outcome
        if isinstance(outcome, list):
            return [_plain(t, value) for value in outcome]
        return _plain(t, outcome)

    return run


def _keeps_numbers(call: Call) -> bool:
    """A cast to another floating type does; integers and other readings of the bits do not."""
    before, after = call.tensors[0].dtype, call.outs[0].dtype
    return before == after or (call.name == "_to_copy" and after.is_floating_point)


def _plain(t: Tracer, value: Value) -> Value:
    return value if isinstance(value, ParamView) else t.book.plain(value)


def consume_into(t: Tracer, x: Shadow, view: ParamView, dim: int, bias: Tensor | None) -> None:
    """A layer sums over these channels, each one's number times its weight.

    Args:
        x: of what it reads, flat.
        dim: where the weight's inputs stand; a grouped convolution has fewer than it reads.
    """
    if x.zero or not t.book.formulas:
        t.consume(x)
        return
    codes = np.where(x.ids == FIXED, 0, x.nonzero)
    known = np.isin(codes, list(t.book.formulas))
    inputs = codes.reshape(-1, t.book.shapes[view.name][dim])
    whole = all(axis is not None and axis.whole for axis in view.axes)
    if not (known.any() and whole and (inputs == inputs[0]).all()):
        t.consume(x)
        return
    t.book.pin_coded(x.ids, np.where(known, 0, codes))
    own = t.param(bias)
    axis = own.axes[0] if own is not None and len(own.axes) == 1 else None
    name = own.name if own is not None and axis is not None and axis.whole else None
    found = np.where(known, codes, 0)
    inputs = found.reshape(inputs.shape)[0]
    t.book.pending.append(Pending(view.name, dim, x.ids, found, inputs, name, bias is not None))


def resolve(t: Tracer, layers: Mapping[str, nn.Module]) -> tuple[Leftover, ...]:
    """Those whose layer's bias can take them; what the others read must stay.

    A weight or bias that is read twice, or by other code, may meet other constants there. Where
    the code reads values, the numbers in it and the way it goes may be those of the example only.
    """
    if not t.book.pending:
        return ()
    reads = any(step.name in READS_VALUES for step in t.steps)
    uses: dict[str, list[str]] = {}
    for step in t.steps:
        for view in step.entered.views if step.name not in TURNS else ():
            uses.setdefault(view.name, []).append(step.name)
    found = []
    for p in t.book.pending:
        one = None if reads else _leftover(t, p, layers)
        if one is not None and _alone(t, one, p, uses):
            found.append(one)
        else:
            t.book.pin_coded(p.ids, p.codes)
    return tuple(found)


def _alone(t: Tracer, one: Leftover, p: Pending, uses: Mapping[str, list[str]]) -> bool:
    """Are weight and bias read once, by this layer?"""
    readers = {one.weight: PRODUCTS}
    if one.bias is not None:
        readers[one.bias] = PRODUCTS if p.given else frozenset({"add"})
    return all(
        name not in t.read_elsewhere and len(uses[name]) == 1 and uses[name][0] in allowed
        for name, allowed in readers.items()
    )


def _leftover(t: Tracer, p: Pending, layers: Mapping[str, nn.Module]) -> Leftover | None:
    path, _, key = p.weight.rpartition(".")
    layer = layers.get(path)
    if layer is None or key not in layer._parameters:
        return None
    plain = is_plain_layer(layer) and key == "weight"
    bias = p.bias
    if plain and "bias" not in layer._parameters:
        return None  # it is computed in the forward
    if plain and bias is None and layer._parameters["bias"] is not None:
        bias = f"{path}.bias" if path else "bias"  # added by an operator of its own
    if bias is None and (p.given or not plain):
        return None
    codes = sorted(set(p.inputs.tolist()) - {0})
    which = np.array([codes.index(c) if c else -1 for c in p.inputs.tolist()])
    formulas = tuple(t.book.formulas[c] for c in codes)
    return Leftover(path, p.weight, p.dim, bias, torch.from_numpy(which), formulas)
