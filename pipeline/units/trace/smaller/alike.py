"""The same attribute in all modules that run alike.

A network of many blocks fails at the first block whose code says a size, then at the second, and so
on. What helped the first is bound in the others at once; the forwards that follow check it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from pipeline.units.modules import number
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.smaller.attributes import Attributes, Candidate, along
from pipeline.units.trace.smaller.probe import Failure
from pipeline.units.trace.steps import Step


def alike(
    candidates: Sequence[Candidate], failure: Failure, found: Attributes, grouping: Grouping
) -> Iterator[Candidate]:
    """These candidates as the other modules of the class have them: the same operators stand where
    the attribute was needed and where its size was seen."""
    path = candidates[0].key[0]
    if not failure.stack or any(c.key[0] != path for c in candidates):
        return
    home = path if path in failure.stack else failure.stack[-1]
    runs = _runs(home, found)
    start = _start(runs, home, failure.at)
    if start is None:
        return
    below = path[len(home) + 1 :] if home else path
    for other, begin, stop in runs:
        at = begin + failure.at - start
        if other != home and at < stop:
            prefix = f"{other}." if other and below else other
            moved = [_moved(c, prefix + below, (failure, at), found, grouping) for c in candidates]
            if all(moved):
                yield from (c for c in moved if c is not None)


def signature(
    failure: Failure, candidates: Sequence[Sequence[Candidate]], found: Attributes
) -> Hashable:
    """Equal for failures of modules of one class at the same operator with the same choice of
    attributes, seen at the same places; None where nothing is known to be equal."""
    home = failure.stack[-1] if failure.stack else ""
    start = _start(_runs(home, found), home, failure.at) if home else None
    if start is None or failure.chosen is not None:
        return None
    tried = tuple(tuple(_seen(c, failure, found) for c in some) for some in candidates)
    name = found.steps[failure.at].name
    return type(found.modules[home]), failure.at - start, name, tried


def _seen(c: Candidate, failure: Failure, found: Attributes) -> Hashable:
    """A candidate without the names of its place in the network."""
    path, name = c.key
    step, out, dim = c.source
    outer = failure.stack[::-1].index(path) if path in failure.stack else -1
    own = path.rpartition(".")[2] if outer < 0 else ""
    return outer, own, c.kind, step - failure.at, out, dim, (path, name) in found.bound


def _runs(path: str, found: Attributes) -> Sequence[tuple[str, int, int]]:
    """Of all modules of this one's class."""
    kind = type(found.modules[path])
    if kind not in found.runs:
        found.runs[kind] = list(runs_of(kind, found.steps, found.modules))
    return found.runs[kind]


def _start(runs: Sequence[tuple[str, int, int]], path: str, at: int) -> int | None:
    """Of the run of this module in which the step stands."""
    return next((s for p, s, stop in runs if p == path and s <= at < stop), None)


def runs_of(
    kind: type[nn.Module], steps: Sequence[Step], modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, int, int]]:
    """Path, first and last step (exclusive) of every time a module of this class ran."""
    open_: dict[tuple[str, ...], tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for depth, path in enumerate(step.where):
            if type(modules[path]) is kind:
                key = step.where[: depth + 1]
                start, stop = open_.get(key, (i, i))
                if stop != i:
                    yield path, start, stop
                    start = i
                open_[key] = start, i + 1
    for key, (start, stop) in open_.items():
        yield key[-1], start, stop


def _moved(
    c: Candidate,
    path: str,
    place: tuple[Failure, int],
    found: Attributes,
    grouping: Grouping,
) -> Candidate | None:
    """`c` in the module `path`, where the step `place[1]` needs it."""
    failure, at = place
    module = found.modules.get(path)
    step, out, dim = c.source
    source = step - failure.at + at
    more = found.bound.get(c.key) is not c.ids  # a number that was found before follows it too
    if type(module) is not c.kind[0] or ((path, c.key[1]) in found.bound and not more):
        return None
    if not 0 <= source < len(found.steps):
        return None
    here = found.steps[source]
    if (found.steps[at].name, here.name) != (
        found.steps[failure.at].name,
        found.steps[step].name,
    ):
        return None
    shadow = here.shadows[out] if out < len(here.shadows) else None
    ids = None if shadow is None else along(shadow, here.shapes[out], dim, grouping)
    if ids is None or failure.keep[ids].all() or number(module, c.key[1]) != len(ids):
        return None
    return replace(c, key=(path, c.key[1]), ids=ids, source=(source, out, dim), at=at)
