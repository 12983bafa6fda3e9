"""The record of a traced forward that the smaller forward is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.units.trace.calls import Call, content, numbers_of
from pipeline.units.trace.demand.lazy import Seen
from pipeline.units.trace.demand.numbers import Numbers
from pipeline.units.trace.shadow import Ids, ParamView, Shadow, Value

Constants = tuple[tuple[int, bytes], ...]
"""Place among the tensor arguments of a call -> content."""


class UnvaluedError(Exception):
    """A constant was made on the meta device, where its values cannot be compared."""


@dataclass(eq=False, slots=True)
class Entered:
    """What the arguments of a call carry.

    Attributes:
        shadows: of activations.
        views: parameters and buffers.
        constants: tensors that no call made: the forward's own code brought them in.
    """

    shadows: list[Shadow]
    views: list[ParamView]
    constants: Constants


@dataclass(eq=False, slots=True)
class Step:
    """One call: the shapes and shadows of its outputs, and what entered.

    Attributes:
        scalars: numbers that enter the values; None where they follow a width.
        decided: what values decided (integers, booleans, numbers read out of a tensor), output by
            output; None for the others. The smaller forward computes other values and is given
            these, so that it selects the same boxes and experts.
        where: paths of the modules that ran, outermost first.
        before: of a slice along channels: the ids before its first position.
    """

    name: str
    shapes: list[tuple[int, ...]]
    shadows: list[Shadow | None]
    entered: Entered
    scalars: tuple[Any, ...] | None
    decided: list[Any]
    where: tuple[str, ...]
    before: Ids | None = None


def entered_by(call: Call, values: Mapping[int, Value], numbers: Numbers | None) -> Entered:
    """Before the rule of the operator has run.

    Raises:
        UnvaluedError: a constant has no values.
    """
    shadows, views, constants = [], [], []
    for place, tensor in enumerate(call.tensors):
        value = values.get(id(tensor))
        if isinstance(value, Shadow):
            shadows.append(value)
        elif value is not None:
            views.append(value)
        elif numbers is None and tensor.is_meta and tensor.numel():
            raise UnvaluedError
        else:
            constants.append((place, content(numbers.value(tensor) if numbers else tensor)))
    return Entered(shadows, views, tuple(constants))


def step_of(
    call: Call,
    entered: Entered,
    values: Mapping[int, Value],
    main: list[bool],
    where: tuple[str, ...],
    given: Numbers | None,
) -> Step:
    """`main`: which outputs carry the value that the rule gave."""
    found = [values.get(id(t)) if m else None for t, m in zip(call.outs, main, strict=False)]
    shadows = [v if isinstance(v, Shadow) else None for v in found]
    numbers = None if _cuts_channels(call, values) else numbers_of(call.func, call.args)
    shapes = [tuple(t.shape) for t in call.outs]
    decided, before = _decided(call, entered, shadows, given), _before(call, values)
    return Step(call.name, shapes, shadows, entered, numbers, decided, where, before)


def _before(call: Call, values: Mapping[int, Value]) -> Ids | None:
    value = values.get(id(call.tensors[0])) if call.name == "slice" else None
    if not isinstance(value, Shadow) or call["step"] != 1:
        return None
    x = call.tensors[0]
    dim = call["dim"] % x.ndim
    if value.varying != (dim,):
        return None
    start = slice(call["start"], call["end"]).indices(x.shape[dim])[0]
    return value.ids.ravel()[:start]


def _decided(
    call: Call, entered: Entered, shadows: list[Shadow | None], numbers: Numbers | None
) -> list[Any]:
    if call.kind.aliases or not entered.shadows:
        return []
    if numbers is None and any(t.is_meta for t in call.tensors):
        return []
    if not isinstance(call.out, Tensor) and not call.outs:
        return [call.out]
    found = [
        None if out.is_floating_point() or (s is not None and s.varying) else _kept(out, numbers)
        for out, s in zip(call.outs, shadows, strict=True)
    ]
    return found if any(x is not None for x in found) else []


def _kept(x: Tensor, numbers: Numbers | None) -> Tensor | Seen:
    return numbers.seen(x) if numbers and x.is_meta else x.clone()


def replayed(step: Step, out: Any, numbers: Numbers | None) -> Any:
    """`out` with what values decided in the recorded forward."""
    if not step.decided:
        return out
    known = [_again(x, numbers) for x in step.decided]
    if not isinstance(out, (list, tuple)):
        return known[0]
    return type(out)(b if a is None else a for a, b in zip(known, out, strict=True))


def _again(x: Any, numbers: Numbers | None) -> Any:
    if isinstance(x, Seen):
        assert numbers is not None
        return numbers.copy_of(x)
    return x.clone() if isinstance(x, Tensor) else x


def _cuts_channels(call: Call, values: Mapping[int, Value]) -> bool:
    """A slice along channels: its bounds may follow the width, and shapes tell."""
    if call.name not in ("slice", "select"):
        return False
    value = values.get(id(call.tensors[0]))
    if not isinstance(value, Shadow):
        return value is not None
    return value.ids.shape[call["dim"] % value.ndim] > 1
