"""Numbers in a module's own code (heads, split sizes) that must shrink with the tensors.

No name is known beforehand. Where the smaller forward fails, the integer attributes of the running
modules (and integers in their lists) that equal a size that changed are tried; one is accepted when
the forward then gets further with every tensor as foreseen. Sizes of a split are tried together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
from torch import nn

from pipeline.units.groups import ChannelGroup, Share, SizeAttribute
from pipeline.units.trace.book import Book
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import FIXED, Ids, Shadow
from pipeline.units.trace.smaller.network import Chosen
from pipeline.units.trace.smaller.probe import Failure
from pipeline.units.trace.steps import Step

WINDOW = 20
"""Operators before and after the failing one whose sizes are looked at."""

MAX_LIST, MAX_TOGETHER = 16, 8
"""Integers in a list that is looked at; ways to choose the sizes of a split in one module."""

Key = tuple[str, str]


Dimension = tuple[int, int, int]
"""Number of a step, of one of its outputs, of a dimension of that."""


@dataclass(frozen=True)
class Candidate:
    """An attribute of a module that equals the number of positions along a dimension.

    Attributes:
        key: path of the module, name of the attribute.
        kind: class of the module, name of the attribute.
        ids: classes along the dimension.
        source: where the dimension was seen.
        at: the step that needs the attribute.
    """

    key: Key
    kind: tuple[type[nn.Module], str]
    ids: Ids
    source: Dimension
    at: int


def share(ids: Ids, grouping: Grouping) -> Share | None:
    """How many of these positions every group's units own; None if its units differ in that."""
    classes, counts = np.unique(grouping.labels[ids], return_counts=True)
    per_unit = {}
    for g in np.unique(grouping.owner[classes]).tolist():
        if g < 0 or not grouping.groups[g].prunable:
            continue
        group = grouping.groups[g]
        own = counts[grouping.owner[classes] == g]
        if own.size != group.size or own.min() != own.max():
            return None
        per_unit[group.name] = int(own[0])
    return Share(ids.size, per_unit)


class Attributes:
    """The attributes found so far, by the ids of the dimension they follow."""

    def __init__(
        self, modules: Mapping[str, nn.Module], steps: Sequence[Step], parts: Sequence[Ids] = ()
    ) -> None:
        self.modules = modules
        self.steps = steps
        self.parts = parts
        self._parts: Ids | None = None
        self.bound: dict[Key, Ids] = {}
        self.phase = 0
        self.runs: dict[type[nn.Module], list[tuple[str, int, int]]] = {}
        self._order: dict[Key, tuple[int, int]] = {}
        self.proven: set[tuple[type[nn.Module], str]] = set()

    def values(self, grouping: Grouping) -> tuple[SizeAttribute, ...]:
        """What surgery must set, in the order in which forwards needed it."""
        found = []
        for path, name in sorted(self.bound, key=self._order.__getitem__):
            own = share(self.bound[path, name], grouping)
            if own is not None and own.per_unit:
                found.append(SizeAttribute(path, name, own))
        return tuple(found)

    def of(self, modules: Sequence[str]) -> list[Ids]:
        """What attributes of these modules follow."""
        return [ids for (path, _), ids in self.bound.items() if path in modules]

    def checks(self, grouping: Grouping) -> Iterator[Chosen]:
        """Which groups to cut together: all, then those of one kind of attribute and the others,
        then some of the parts that channels were cut into, so that of any two one is cut alone.

        In the first, sizes that must be equal may be so by chance.
        """
        yield None
        prunable = {g.name for g in grouping.groups if g.prunable}
        kinds: dict[tuple[type[nn.Module], str], set[str]] = {}
        for attribute in self.values(grouping):
            kind = (type(self.modules[attribute.module]), attribute.name)
            kinds.setdefault(kind, set()).update(attribute.share.per_unit)
        for own in kinds.values():
            yield frozenset(prunable - own)
            yield frozenset(own)
        names = [g.name for g in self._cut_into(grouping)]
        for bit in range(len(names).bit_length()):
            chosen = frozenset(n for i, n in enumerate(names) if i >> bit & 1)
            yield chosen
            yield frozenset(names) - chosen

    def untried(self, grouping: Grouping) -> Iterator[Ids]:
        """Parts of one channel, which the smaller forward cannot cut."""
        for group in self._cut_into(grouping):
            if group.size == 1:
                yield grouping.classes[grouping.groups.index(group)]

    def _cut_into(self, grouping: Grouping) -> list[ChannelGroup]:
        """Prunable groups that are parts of a dimension."""
        if not self.parts:
            return []
        if self._parts is None:
            present = np.zeros(grouping.labels.size, dtype=bool)
            for ids in {id(ids): ids for ids in self.parts}.values():
                present[ids] = True
            self._parts = np.flatnonzero(present)
        found = np.unique(grouping.owner[grouping.labels[self._parts]])
        groups = [grouping.groups[g] for g in found.tolist() if g >= 0]
        return [g for g in groups if g.prunable]

    def bind(self, candidate: Candidate, book: Book) -> None:
        """One number has one value: all sizes that follow it shrink alike."""
        if candidate.key not in self.bound:
            self._order[candidate.key] = self.phase, candidate.at
        seen = self.bound.setdefault(candidate.key, candidate.ids)
        if seen is not candidate.ids:
            book.union(seen, candidate.ids, "one attribute sets its size and one that must stay")

    def candidates(self, failure: Failure, grouping: Grouping) -> Iterator[list[Candidate]]:
        """Attributes to try; those that helped in a module of the same class first."""
        if failure.at < len(self.steps) and self.steps[failure.at].name == "split_with_sizes":
            yield from self._together(failure, grouping)
        sizes = list(self._changed(failure, grouping))
        found = [
            candidate
            for path in self._near(failure)
            for source, ids in sizes
            for candidate in self._equal(path, ids, source, failure.at)
        ]
        # Heads per group equal the number of groups in many a network: the groups can shrink.
        found.sort(key=lambda c: (c.kind not in self.proven, c.key[1].endswith("_groups")))
        yield from ([c] for c in found)

    def _together(self, failure: Failure, grouping: Grouping) -> Iterator[list[Candidate]]:
        """One attribute of one module for every part of a split that lost positions."""
        step = self.steps[failure.at]
        shadows = [s for s in step.shadows if s is not None]
        for dim in sorted({d for s in shadows for d in s.varying}):
            parts = {}
            for place, (shape, shadow) in enumerate(zip(step.shapes, shadows, strict=False)):
                ids = along(shadow, shape, dim, grouping)
                if ids is not None and not failure.keep[ids].all():
                    parts[place] = ids
            for path in self._near(failure) if parts else ():
                equal = {
                    place: self._equal(path, ids, (failure.at, place, dim), failure.at)
                    for place, ids in parts.items()
                }
                yield from self._lists(equal)
                yield from map(list, islice(product(*equal.values()), MAX_TOGETHER))

    def _lists(self, equal: Mapping[int, list[Candidate]]) -> Iterator[list[Candidate]]:
        """Lists with an entry for every part, in order."""
        lists = {c.key[1].partition("[")[0] for c in equal[min(equal)] if c.key[1].endswith("]")}
        for name in sorted(lists):
            found = [c for i, own in equal.items() for c in own if c.key[1] == f"{name}[{i}]"]
            if len(found) == len(equal):
                yield found

    def _near(self, failure: Failure) -> list[str]:
        """Modules that run, innermost first, then the parts of the innermost, whose methods its
        code may have called."""
        running = list(dict.fromkeys(reversed(failure.stack)))
        prefix = f"{running[0]}." if running and running[0] else ""
        own = self.modules[running[0]]._modules if running else {}
        return running + [prefix + key for key in own if prefix + key in self.modules]

    def _equal(self, path: str, ids: Ids, source: Dimension, at: int) -> list[Candidate]:
        """Attributes of a module that equal this number of positions, entries of lists first."""
        module = self.modules[path]
        names = [n for n, value in _numbers(module) if value == len(ids)]
        names.sort(key=lambda name: not name.endswith("]"))
        return [Candidate((path, name), (type(module), name), ids, source, at) for name in names]

    def _changed(self, failure: Failure, grouping: Grouping) -> Iterator[tuple[Dimension, Ids]]:
        """Dimensions near the failure that lost positions, nearest first."""
        seen: set[bytes] = set()
        near = range(max(0, failure.at - WINDOW), min(len(self.steps), failure.at + WINDOW + 1))
        for i in sorted(near, key=lambda i: abs(i - failure.at)):
            outputs = zip(self.steps[i].shapes, self.steps[i].shadows, strict=True)
            for out, (shape, shadow) in enumerate(outputs):
                for d in shadow.varying if shadow is not None else ():
                    assert shadow is not None
                    ids = along(shadow, shape, d, grouping)
                    if ids is None or failure.keep[ids].all() or ids.tobytes() in seen:
                        continue
                    seen.add(ids.tobytes())
                    yield (i, out, d), ids


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Integer attributes, and integers in short lists of a network's own modules."""
    own = not type(module).__module__.startswith("torch.nn")
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, value
        elif own and type(value) in (list, tuple) and len(value) <= MAX_LIST:
            yield from ((f"{name}[{i}]", n) for i, n in enumerate(value) if type(n) is int)


def along(shadow: Shadow, shape: tuple[int, ...], dim: int, grouping: Grouping) -> Ids | None:
    """Classes along a dimension, where they vary along no other."""
    if dim not in shadow.varying:
        return None
    rows = np.moveaxis(grouping.labels[shadow.ids], dim, 0).reshape(shape[dim], -1)
    ids: Ids = rows[:, 0]
    plain = (rows == ids[:, None]).all() and (ids != FIXED).any()
    return ids if plain else None
