"""A second forward with channels removed: does every tensor get the shape that was foreseen?

A size written as a number in the code (`x.view(-1, 512)`, `x.split(64)`), or a factor computed from
a width, cannot be told from a computed one in a single pass. Here it shows, and the units that meet
it must stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.groups import SizeAttribute
from pipeline.units.modules import number, set_size
from pipeline.units.trace.book import Book
from pipeline.units.trace.calls import (
    COPIES,
    bind,
    content,
    flat,
    numbers_of,
    operator,
    tensors_in,
)
from pipeline.units.trace.demand.numbers import Numbers
from pipeline.units.trace.forward import Forward, module_stack
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import Ids, Shadow
from pipeline.units.trace.shapes import run
from pipeline.units.trace.skipped.modules import Modules, Settings
from pipeline.units.trace.smaller.network import (
    Changes,
    Chosen,
    Keep,
    Smaller,
    sizes_left,
    smaller,
)
from pipeline.units.trace.steps import Step, replayed

LAYOUT = frozenset({"view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze"})
"""Operators that torch puts in or leaves out by what is contiguous."""


class Mismatch(Exception):  # noqa: N818  (a signal, not an error)
    """The forward of the smaller network left the foreseen path."""


class _Checker(TorchDispatchMode):
    """Compares every call with the recorded one, up to that of number `end`."""

    def __init__(self, steps: Sequence[Step], cut: Smaller, numbers: Numbers | None) -> None:
        super().__init__()
        self.steps, self.end = steps, len(steps)
        self.keep = cut.keep
        self.at = 0
        self.kept = cut.kept
        self.numbers = numbers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler at the first call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = operator(func).name
        out = self._run(name, func, args, kwargs)
        if name in COPIES or (name in LAYOUT and self._next() != name):
            return out
        while (expected := self._next()) != name and expected in LAYOUT:
            self.at += 1
        if self.at >= len(self.steps):
            raise Mismatch("the smaller network runs other operators")
        step = self.steps[self.at]
        if name != step.name:
            raise Mismatch(f"the smaller network runs {name}, not {step.name}")
        if step.decided:
            out = replayed(step, out, self.numbers)
        outs = (out,) if isinstance(out, Tensor) else tensors_in(out)
        for tensor, shape, shadow in zip(outs, step.shapes, step.shadows, strict=False):
            if shadow is not None and tensor.shape != self._foreseen(shape, shadow):
                raise Mismatch(f"{step.name} has a size written in the code")
        if step.scalars or step.entered.constants or step.before is not None:
            self._compare(step, func, bind(func, args, kwargs))
        self.at += 1
        if self.at > self.end:
            raise Mismatch("it went past the step that was asked for")
        return out

    def _run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.numbers is not None:
            return self.numbers.run(func, args, kwargs, self._decided(name))
        return func(*args, **kwargs) if name in COPIES else run(func, args, kwargs)

    def _compare(self, step: Step, func: Any, bound: dict[str, Any]) -> None:
        """Numbers, constants, where a slice begins."""
        if step.scalars is not None and step.scalars != numbers_of(func, bound):
            raise Mismatch(f"{step.name} uses a number that depends on the width")
        if step.entered.constants and not self._same_constants(step, flat(bound.values())):
            raise Mismatch(f"{step.name} uses a constant that depends on the width")
        if step.before is not None:
            size = bound["self"].shape[bound["dim"]]
            start = slice(bound["start"], bound["end"]).indices(size)[0]
            if start != np.count_nonzero(self.keep[step.before]):
                raise Mismatch(f"{step.name} starts at a position written in the code")

    def _same_constants(self, step: Step, tensors: list[Tensor]) -> bool:
        if step.entered.constants[-1][0] >= len(tensors):
            return False
        value = self.numbers.value if self.numbers else lambda x: x
        return all(content(value(tensors[i])) == found for i, found in step.entered.constants)

    def _decided(self, name: str) -> list[Any]:
        """By the step that this call should be."""
        if name in COPIES:
            return []
        left = (s for s in islice(self.steps, self.at, None) if s.name not in LAYOUT - {name})
        step = next(left, None)
        return step.decided if step is not None and step.name == name else []

    def _foreseen(self, shape: tuple[int, ...], shadow: Shadow) -> tuple[int, ...]:
        """Of the tensor once the positions of removed ids are gone."""
        left = self.kept.get(id(shadow.ids))
        if left is None:
            left = self.kept[id(shadow.ids)] = sizes_left(shadow, self.keep)
        return tuple([left.get(d, n) for d, n in enumerate(shape)]) if left else shape

    def _next(self) -> str:
        return self.steps[self.at].name if self.at < len(self.steps) else ""


@contextmanager
def _resized(changes: Changes) -> Iterator[None]:
    """New attributes for a while."""
    before: Changes = []
    for layer, new in changes:
        own = vars(layer)
        # Of a number in a plain module, setattr would look for a tensor and a module first.
        plain = type(layer).__setattr__ is nn.Module.__setattr__ and new.keys() <= own.keys()
        keys = [key for key in new if own[key] != new[key]] if plain else list(new)
        names = {key.partition("[")[0] for key in keys}
        before.append((layer, {name: getattr(layer, name) for name in names}))
        if plain:
            own.update((key, new[key]) for key in keys)
        for key in () if plain else keys:
            set_size(layer, key, new[key])
    try:
        yield
    finally:
        for layer, old in reversed(before):
            for name, value in old.items():
                setattr(layer, name, value)


@dataclass(frozen=True)
class Failure:
    """Where the smaller forward left the foreseen path, and which ids it kept."""

    at: int
    stack: tuple[str, ...]
    reason: str
    keep: Keep
    chosen: Chosen


Ran = dict[Settings, Failure | None]
"""How forwards ended, by the attributes that were set."""


class Probe:
    """Runs smaller networks. What depends on the groups alone is made once for several runs, and a
    network that would be the same as one before is not run again."""

    def __init__(self, forward: Forward, steps: Sequence[Step]) -> None:
        self.forward = forward
        self.steps = steps
        self._cuts: dict[Chosen, tuple[Smaller, Ran]] = {}
        self._of: Grouping | None = None
        self._places: dict[int, int] = {}
        self._forwards = self._touched = 0
        self._modules: Modules | None = None

    def run(
        self, grouping: Grouping, attributes: Sequence[SizeAttribute] = (), chosen: Chosen = None
    ) -> Failure | None:
        """None when the smaller network runs as foreseen."""
        cut, ran = self._smaller(grouping, chosen)
        if not cut.removed:
            return None
        settings = self._settings(cut, attributes)
        if settings not in ran:
            ran[settings] = self._ran(cut, settings, chosen)
        return ran[settings]

    def fails_at(
        self, at: int, grouping: Grouping, attributes: Sequence[SizeAttribute], chosen: Chosen
    ) -> bool:
        """Does it leave the foreseen path at this step? It does not run on behind it."""
        cut, _ = self._smaller(grouping, chosen)
        failure = self._ran(cut, self._settings(cut, attributes), chosen, at)
        return failure is not None and failure.at == at

    def has_run(
        self, grouping: Grouping, attributes: Sequence[SizeAttribute], chosen: Chosen
    ) -> bool:
        """Would it be the same network once more?"""
        cut, ran = self._smaller(grouping, chosen)
        return self._settings(cut, attributes) in ran

    def _settings(self, cut: Smaller, attributes: Sequence[SizeAttribute]) -> Settings:
        """Attributes that are not what they would be without being set."""
        said = {(layer, name): n for layer, new in cut.changed for name, n in new.items()}
        found = set()
        for one in attributes:
            layer, value = self.forward.layers[one.module], one.share.left(cut.removed)
            if said.get((layer, one.name), number(layer, one.name)) != value:
                found.add((one.module, one.name, value))
        return frozenset(found)

    def _ran(
        self, cut: Smaller, settings: Settings, chosen: Chosen, end: int | None = None
    ) -> Failure | None:
        forward = self.forward
        changed = [*cut.changed, *((forward.layers[m], {k: n}) for m, k, n in settings)]
        checker = _Checker(self.steps, cut, forward.numbers)
        checker.end = checker.end if end is None else end
        meanwhile = forward.numbers.for_a_while() if forward.numbers else nullcontext()
        with _resized(changed), module_stack(forward.layers) as stack, ExitStack() as more:
            more.enter_context(meanwhile)
            more.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            try:
                install = partial(self._install, checker, cut, settings)
                resized = {id(vars(layer)) for layer, _ in changed}
                forward.run(cut.tensors, checker, install=install, ours=resized)
            except Exception as error:  # whatever the network's code raises at other sizes
                reason = _words(error, self.steps, checker.at)
                return Failure(checker.at, tuple(stack), reason, cut.keep, chosen)
        return None

    def _install(self, checker: _Checker, cut: Smaller, settings: Settings) -> list[nn.Module]:
        """What need not run again; of the first forward nothing does. A function that remembers
        results would run elsewhere without its first caller."""
        forward = self.forward
        installed: list[nn.Module] = [*forward.sequences.install(None)]
        self._forwards += 1
        if self._forwards > 1 and not forward.remembered:
            if self._modules is None or self._touched != len(forward.touched):
                self._touched = len(forward.touched)
                self._modules = Modules(forward.layers, self.steps, forward.touched)
            installed += self._modules.install(checker, cut.sizes, settings)
        return installed

    def _smaller(self, grouping: Grouping, chosen: Chosen) -> tuple[Smaller, Ran]:
        if self._of is not grouping:
            self._of, self._cuts = grouping, {}
        if chosen not in self._cuts:
            self._cuts[chosen] = smaller(self.forward, grouping, chosen, self._places), {}
        return self._cuts[chosen]


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
    bound: Iterable[Ids],
    cut: Callable[[], list[Ids]],
) -> None:
    """Pin what enters or leaves the failing call; if nothing there was cut, its parameters; then
    what an attribute of the running modules follows (`bound`); failing that, groups that were
    `cut`."""
    near: list[Ids] = []
    weights: list[Ids] = []
    if failure.at < len(steps):
        step = steps[failure.at]
        near = [s.ids for s in [*step.entered.shadows, *step.shadows] if s is not None]
        weights = [ids for view in step.entered.views for ids in book.ids_of(view)]
    lost = ([ids for ids in some if not failure.keep[ids].all()] for some in (near, weights, bound))
    for ids in next((found for found in lost if found), None) or cut():
        book.pin(ids, failure.reason)
