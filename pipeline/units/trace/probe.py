"""A second forward with channels removed: does every tensor get the shape that was foreseen?

A size written as a number in the code (`x.view(-1, 512)`, `x.split(64)`), or a factor computed from
a width, cannot be told from a computed one in a single pass. Here it shows, and the units that meet
it must stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.cuts import alive_positions, cut
from pipeline.units.groups import SizeAttribute, Units
from pipeline.units.modules import own_shapes, set_size, sizes
from pipeline.units.trace.book import Book
from pipeline.units.trace.calls import (
    COPIES,
    bind,
    content,
    flat,
    numbers_of,
    operator_name,
    tensors_in,
)
from pipeline.units.trace.forward import Forward, module_stack
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import Ids, Shadow
from pipeline.units.trace.shapes import run
from pipeline.units.trace.steps import Step, replayed

Keep = NDArray[np.bool_]
Chosen = frozenset[str] | None
"""Names of the groups that the smaller forward cuts; None for all."""


LAYOUT = frozenset({"view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze"})
"""Operators that torch puts in or leaves out by what is contiguous."""


class Mismatch(Exception):  # noqa: N818  (a signal, not an error)
    """The forward of the smaller network left the foreseen path."""


class _Checker(TorchDispatchMode):
    """Compares every call with the recorded one."""

    def __init__(self, steps: Sequence[Step], keep: Keep) -> None:
        super().__init__()
        self.steps = steps
        self.keep = keep
        self.at = 0
        self.kept: dict[int, dict[int, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler at the first call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if operator_name(func) in COPIES:
            return func(*args, **(kwargs or {}))
        out = run(func, args, kwargs or {})
        if operator_name(func) in LAYOUT and self._next() != operator_name(func):
            return out
        while self._next() in LAYOUT and self._next() != operator_name(func):
            self.at += 1
        if self.at >= len(self.steps):
            raise Mismatch("the smaller network runs other operators")
        step = self.steps[self.at]
        if operator_name(func) != step.name:
            raise Mismatch(f"the smaller network runs {operator_name(func)}, not {step.name}")
        out = replayed(step, out)
        for tensor, shape, shadow in zip(tensors_in(out), step.shapes, step.shadows, strict=False):
            if shadow is not None and tuple(tensor.shape) != self._foreseen(shape, shadow):
                raise Mismatch(f"{step.name} has a size written in the code")
        if step.scalars or step.entered.constants or step.before is not None:
            self._compare(step, func, bind(func, args, kwargs or {}))
        self.at += 1
        return out

    def _compare(self, step: Step, func: Any, bound: dict[str, Any]) -> None:
        """Numbers, constants, where a slice begins."""
        if step.scalars is not None and step.scalars != numbers_of(func, bound):
            raise Mismatch(f"{step.name} uses a number that depends on the width")
        if step.entered.constants and not _same_constants(step, flat(bound.values())):
            raise Mismatch(f"{step.name} uses a constant that depends on the width")
        if step.before is not None:
            size = bound["self"].shape[bound["dim"]]
            start = slice(bound["start"], bound["end"]).indices(size)[0]
            if start != np.count_nonzero(self.keep[step.before]):
                raise Mismatch(f"{step.name} starts at a position written in the code")

    def _foreseen(self, shape: tuple[int, ...], shadow: Shadow) -> tuple[int, ...]:
        """Of the tensor once the positions of removed ids are gone."""
        left = self.kept.get(id(shadow.ids))
        if left is None:
            left = self.kept[id(shadow.ids)] = _sizes_left(shadow, self.keep)
        return tuple(left.get(d, n) for d, n in enumerate(shape)) if left else shape

    def _next(self) -> str:
        return self.steps[self.at].name if self.at < len(self.steps) else ""


def _same_constants(step: Step, tensors: list[Tensor]) -> bool:
    if step.entered.constants[-1][0] >= len(tensors):
        return False
    return all(content(tensors[i]) == values for i, values in step.entered.constants)


def _sizes_left(shadow: Shadow, keep: Keep) -> dict[int, int]:
    """Size of every dimension along which ids differ, once the removed ones are gone."""
    varying = shadow.varying
    if not varying:
        return {}
    alive = keep[shadow.ids]
    if len(varying) == 1:
        return {varying[0]: int(np.count_nonzero(alive))}
    return {
        d: int(alive.any(axis=tuple(i for i in range(shadow.ndim) if i != d)).sum())
        for d in varying
    }


def _half(grouping: Grouping, count: int, chosen: Chosen) -> tuple[dict[str, Tensor], Keep]:
    """Masks that keep a different part of every prunable group, and the same per class.

    Two channels stay where there are three: with a size of 1 torch takes other paths. The first
    channels stay, where some groups were chosen the last: a slice may begin behind either.
    """
    masks, keep = {}, np.ones(count, dtype=bool)
    for number, (group, classes) in enumerate(zip(grouping.groups, grouping.classes, strict=True)):
        if group.prunable and group.size > 1 and (chosen is None or group.name in chosen):
            part = 0.3 + 0.6 * ((number * 0.618) % 1.0)  # also tells groups of four apart
            kept = min(group.size - 1, max(2, round(part * group.size)))
            mask = torch.arange(group.size) < kept
            masks[group.name] = mask if chosen is None else mask.flip(0)
            keep[classes[~masks[group.name].numpy()]] = False
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


Changes = list[tuple[nn.Module, dict[str, Any]]]


def _new_values(layers: Mapping[str, nn.Module], tensors: dict[str, Tensor]) -> Changes:
    """Layers say the sizes of the stand-ins (groups of a depthwise convolution)."""
    changes = []
    for path, layer in layers.items():
        prefix = f"{path}." if path else ""
        before = own_shapes(layer)
        shapes = {n: tuple(tensors[prefix + n].shape) for n in before}
        if shapes != before:
            changes.append((layer, sizes(layer, shapes)))
    return changes


@contextmanager
def _resized(changes: Changes) -> Iterator[None]:
    """New attributes for a while."""
    before: Changes = []
    for layer, new in changes:
        before.append((layer, {k: getattr(layer, k) for k in (n.partition("[")[0] for n in new)}))
        for key, value in new.items():
            set_size(layer, key, value)
    try:
        yield
    finally:
        for layer, old in reversed(before):
            for key, value in old.items():
                setattr(layer, key, value)


@dataclass(frozen=True)
class Failure:
    """Where the smaller forward left the foreseen path, and which ids it kept."""

    at: int
    stack: tuple[str, ...]
    reason: str
    keep: Keep
    chosen: Chosen


def probe(
    forward: Forward,
    grouping: Grouping,
    steps: Sequence[Step],
    attributes: tuple[SizeAttribute, ...] = (),
    chosen: Chosen = None,
) -> Failure | None:
    """None when the smaller network runs as foreseen."""
    masks, keep = _half(grouping, grouping.labels.size, chosen)
    if not masks:
        return None
    tensors = _smaller(forward.tensors(), grouping, masks)
    keep_id = keep[grouping.labels]
    checker = _Checker(steps, keep_id)
    removed = {name: int((~mask).sum()) for name, mask in masks.items()}
    changed = _new_values(forward.layers, tensors)
    for attribute in attributes:
        module = forward.layers[attribute.module]
        changed.append((module, {attribute.name: attribute.share.left(removed)}))
    with _resized(changed), module_stack(forward.layers) as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            forward.run(tensors, checker)
        except Exception as error:  # whatever the network's code raises at other sizes
            reason = _words(error, steps, checker.at)
            return Failure(checker.at, tuple(stack), reason, keep_id, chosen)
    return None


def _words(error: Exception, steps: Sequence[Step], at: int) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    where = steps[at].name if at < len(steps) else "the end"
    first = str(error).strip().splitlines()
    return f"the smaller network fails at {where}: {first[0] if first else type(error).__name__}"


def blame(
    failure: Failure,
    steps: Sequence[Step],
    book: Book,
    grouping: Grouping,
    bound: Iterable[Ids] = (),
) -> None:
    """Pin what enters or leaves the failing call; if nothing there was cut, its parameters; then
    what an attribute of the running modules follows (`bound`); failing that, every group that was
    cut."""
    near: list[Ids] = []
    weights: list[Ids] = []
    if failure.at < len(steps):
        step = steps[failure.at]
        near = [s.ids for s in [*step.entered.shadows, *step.shadows] if s is not None]
        weights = [ids for view in step.entered.views for ids in book.ids_of(view)]
    lost = ([ids for ids in some if not failure.keep[ids].all()] for some in (near, weights, bound))
    touched = next((found for found in lost if found), [])
    if not touched:
        cut = [classes for classes in grouping.classes if not failure.keep[classes].all()]
        touched = [np.concatenate(cut)] if cut else []
    for ids in touched:
        book.pin(ids, failure.reason)
