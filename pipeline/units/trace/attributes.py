"""Numbers in a module's own code (heads, split sizes) that must shrink with the tensors.

No name is known beforehand. Where the smaller forward fails, the integer attributes of the running
modules that equal a size that changed are tried; one is accepted when the forward then gets further
with every tensor as foreseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from pipeline.units.groups import Share, SizeAttribute
from pipeline.units.trace.book import Book
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.probe import Chosen, Failure
from pipeline.units.trace.shadow import FIXED, Ids
from pipeline.units.trace.steps import Step

WINDOW = 20
"""Operators before and after the failing one whose sizes are looked at."""

Key = tuple[str, str]


@dataclass(frozen=True)
class Candidate:
    """Attribute `key` of a module, equal to the number of positions in `ids`."""

    key: Key
    kind: tuple[type[nn.Module], str]
    ids: Ids


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

    def __init__(self, modules: Mapping[str, nn.Module], steps: Sequence[Step]) -> None:
        self.modules = modules
        self.steps = steps
        self.bound: dict[Key, Ids] = {}
        self.proven: set[tuple[type[nn.Module], str]] = set()

    def values(self, grouping: Grouping) -> tuple[SizeAttribute, ...]:
        """What surgery must set."""
        found = []
        for (path, name), ids in self.bound.items():
            own = share(ids, grouping)
            if own is not None and own.per_unit:
                found.append(SizeAttribute(path, name, own))
        return tuple(found)

    def of(self, modules: Sequence[str]) -> list[Ids]:
        """What attributes of these modules follow."""
        return [ids for (path, _), ids in self.bound.items() if path in modules]

    def checks(self, grouping: Grouping) -> Iterator[Chosen]:
        """Which groups to cut together: all, then those of one kind of attribute and the others.

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

    def bind(self, candidate: Candidate, book: Book) -> None:
        """One number has one value: all sizes that follow it shrink alike."""
        seen = self.bound.setdefault(candidate.key, candidate.ids)
        if seen is not candidate.ids:
            book.union(seen, candidate.ids, "one attribute sets its size and one that must stay")

    def candidates(self, failure: Failure, grouping: Grouping) -> Iterator[Candidate]:
        """Attributes to try; those that helped in a module of the same class first."""
        found: list[Candidate] = []
        sizes = list(self._changed(failure, grouping))
        for path in dict.fromkeys(reversed(failure.stack)):
            module = self.modules[path]
            for name, value in vars(module).items():
                if type(value) is int:
                    kind = (type(module), name)
                    found += [
                        Candidate((path, name), kind, ids) for ids in sizes if len(ids) == value
                    ]
        yield from sorted(found, key=lambda c: c.kind not in self.proven)

    def _changed(self, failure: Failure, grouping: Grouping) -> Iterator[Ids]:
        """Dimensions near the failure that lost positions, nearest first."""
        seen: set[bytes] = set()
        near = range(max(0, failure.at - WINDOW), min(len(self.steps), failure.at + WINDOW + 1))
        for i in sorted(near, key=lambda i: abs(i - failure.at)):
            for shape, shadow in zip(self.steps[i].shapes, self.steps[i].shadows, strict=True):
                for d in shadow.varying if shadow is not None else ():
                    assert shadow is not None
                    rows = np.moveaxis(grouping.labels[shadow.ids], d, 0).reshape(shape[d], -1)
                    ids = rows[:, 0]
                    plain = (rows == ids[:, None]).all() and (ids != FIXED).any()
                    if plain and not failure.keep[ids].all() and ids.tobytes() not in seen:
                        seen.add(ids.tobytes())
                        yield ids
