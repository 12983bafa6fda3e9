"""A second forward with channels removed: does every tensor get the shape that was foreseen?

A size written as a number in the code (`x.view(-1, 512)`, `x.split(64)`), or a factor computed from
a width, cannot be told from a computed one in a single pass. Here it shows, and the units that meet
it must stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.cuts import alive_positions, cut
from pipeline.units.groups import Units
from pipeline.units.modules import own_shapes, sizes
from pipeline.units.trace.book import Book
from pipeline.units.trace.forward import Forward
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import Ids, Shadow
from pipeline.units.trace.tracer import COPIES, Step, bind, operator_name, run, tensors_in

Keep = NDArray[np.bool_]


class Mismatch(Exception):  # noqa: N818  (a signal, not an error)
    """The forward of the smaller network left the foreseen path."""


class _Checker(TorchDispatchMode):
    """Compares every call with the recorded one."""

    def __init__(self, steps: Sequence[Step], keep: Keep) -> None:
        super().__init__()
        self.steps = steps
        self.keep = keep
        self.at = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if operator_name(func) in COPIES:
            return func(*args, **(kwargs or {}))
        if self.at >= len(self.steps):
            raise Mismatch("the smaller network runs other operators")
        step = self.steps[self.at]
        out = run(func, args, kwargs or {})
        if operator_name(func) != step.name:
            raise Mismatch(f"the smaller network runs {operator_name(func)}, not {step.name}")
        for tensor, shape, shadow in zip(tensors_in(out), step.shapes, step.shadows, strict=False):
            if shadow is not None and tuple(tensor.shape) != kept_shape(shape, shadow, self.keep):
                raise Mismatch(f"{step.name} has a size written in the code")
        if step.scalars and step.scalars != _floats(func, args, kwargs):
            raise Mismatch(f"{step.name} uses a number that depends on the width")
        self.at += 1
        return out


def _floats(func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[float, ...]:
    return tuple(v for v in bind(func, args, kwargs or {}).values() if isinstance(v, float))


def kept_shape(shape: Sequence[int], shadow: Shadow, keep: Keep) -> tuple[int, ...]:
    """Shape once the positions of removed ids are gone."""
    alive = keep[shadow.ids]
    result = list(shape)
    for d in shadow.varying:
        others = tuple(i for i in range(shadow.ndim) if i != d)
        result[d] = int(alive.any(axis=others).sum())
    return tuple(result)


def _half(grouping: Grouping, count: int) -> tuple[dict[str, Tensor], Keep]:
    """Masks that keep a different part of every prunable group, and the same per class."""
    masks, keep = {}, np.ones(count, dtype=bool)
    for number, (group, classes) in enumerate(zip(grouping.groups, grouping.classes, strict=True)):
        if group.prunable and group.size > 1:
            part = 0.3 + 0.4 * ((number * 0.618) % 1.0)
            kept = min(group.size - 1, max(1, round(part * group.size)))
            keep[classes[kept:]] = False
            masks[group.name] = torch.arange(group.size) < kept
    return masks, keep


def _smaller(
    tensors: dict[str, Tensor], grouping: Grouping, masks: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Stand-ins cut to the masks; names that share a tensor keep sharing it."""
    first = {id(x): name for name, x in reversed(tensors.items())}
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    alive = alive_positions(Units((), grouping.groups), masks, shapes)
    made = {name: cut(tensors[name], dims) for name, dims in alive.items()}
    return {name: made.get(first[id(x)], x) for name, x in tensors.items()}


@contextmanager
def _resized(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Layers say the sizes of the stand-ins (groups of a depthwise convolution) for a while."""
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    for path, layer in model.named_modules():
        prefix = f"{path}." if path else ""
        shapes = {n: tuple(tensors[prefix + n].shape) for n in own_shapes(layer)}
        new = sizes(layer, shapes)
        before.append((layer, {k: getattr(layer, k) for k in new}))
        for key, value in new.items():
            setattr(layer, key, value)
    try:
        yield
    finally:
        for layer, old in before:
            for key, value in old.items():
                setattr(layer, key, value)


def probe(forward: Forward, grouping: Grouping, steps: Sequence[Step], book: Book) -> bool:
    """True when the smaller network runs as foreseen; else pins the units in the way."""
    masks, keep = _half(grouping, book.count)
    if not masks:
        return True
    tensors = _smaller(forward.tensors(), grouping, masks)
    keep_id = keep[grouping.labels]
    checker = _Checker(steps, keep_id)
    with _resized(forward.model, tensors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            forward.run(tensors, checker)
        except Exception as error:  # whatever the network's code raises at other sizes
            _blame(checker, book, keep_id, _words(error, steps, checker.at))
            return False
    return True


def _words(error: Exception, steps: Sequence[Step], at: int) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    where = steps[at].name if at < len(steps) else "the end"
    first = str(error).strip().splitlines()
    return f"the smaller network fails at {where}: {first[0] if first else type(error).__name__}"


def _blame(checker: _Checker, book: Book, keep: Keep, reason: str) -> None:
    """Pin what enters or leaves the failing call; if nothing there was cut, everything."""
    near: list[Ids] = []
    if checker.at < len(checker.steps):
        step = checker.steps[checker.at]
        near = [s.ids for s in [*step.inputs, *step.shadows] if s is not None]
    touched = [ids for ids in near if not keep[ids].all()]
    for ids in touched or [np.arange(book.count)]:
        book.pin(ids, reason)
