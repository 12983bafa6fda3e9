"""Smaller forwards until one runs as foreseen: attributes are found, or what met the failure stays.

Every trial is a forward of the whole network, so none is made that another answers: an attribute
that helped one module is given to all that run alike, and groups are made anew only where the book
of units has changed.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np

from pipeline.units.groups import SizeAttribute
from pipeline.units.trace.book import Book
from pipeline.units.trace.forward import Forward
from pipeline.units.trace.grouping import Grouping, Reader
from pipeline.units.trace.shadow import Ids
from pipeline.units.trace.smaller.alike import alike, signature
from pipeline.units.trace.smaller.attributes import Attributes, share
from pipeline.units.trace.smaller.probe import Failure, Probe, blame
from pipeline.units.trace.tracer import Tracer

MAX_PROBES = 200
MAX_CANDIDATES = 16
MAX_HALVES = 64
"""Forwards of the search for the groups that a number in the code follows."""


class Search:
    """Groups of a traced network, and the attributes that they need."""

    def __init__(self, forward: Forward, tracer: Tracer) -> None:
        self.book: Book = tracer.book
        self.normed = tracer.normed
        self.found = Attributes(forward.layers, tracer.steps, tracer.parts)
        self.probe = Probe(forward, tracer.steps)
        self._reader = Reader(tracer.book)
        self._hopeless: set[Hashable] = set()
        self._grouping: Grouping | None = None
        self._version: tuple[int, int] = (-1, -1)

    def groups(self) -> Grouping:
        """What the book says now."""
        version = len(self.book.edges), len(self.book.pins)
        if self._grouping is None or version != self._version:
            self._grouping, self._version = self._reader.groups(), version
        return self._grouping

    def run(self) -> tuple[Grouping, tuple[SizeAttribute, ...]]:
        """Groups that a smaller forward has confirmed, with the attributes it needs."""
        failure: Failure | None = None
        for _ in range(MAX_PROBES):
            grouping = self.groups()
            if failure is None:
                values = self.found.values(grouping)
                failure = self._failure(grouping, values)
                if failure is None:
                    if not self._pin_unproven(grouping):
                        return grouping, values
                    continue
            adapted = self._adapted(failure)
            if adapted is None:
                bound, cut = self.found.of(failure.stack), partial(self._culprits, failure)
                blame(failure, self.found.steps, self.book, bound, cut)
            failure = adapted if isinstance(adapted, Failure) else None
        self.book.pin(np.arange(self.book.count), "the smaller network could not be run")
        return self.groups(), ()

    def _failure(self, grouping: Grouping, values: tuple[SizeAttribute, ...]) -> Failure | None:
        """Of the first check that fails."""
        self.found.phase += 1
        for chosen in self.found.checks(grouping):
            failure = self.probe.run(grouping, values, chosen)
            if failure is not None:
                return failure
        return None

    def _adapted(self, failure: Failure) -> Failure | Literal[True] | None:
        """An attribute that helps the smaller forward past the failure is kept, in all modules that
        run alike: where does it fail now? True if nowhere, None if no attribute helps."""
        found, book, grouping = self.found, self.book, self.groups()
        choice = list(islice(found.candidates(failure, grouping), MAX_CANDIDATES))
        failed = signature(failure, choice, found)
        if failed in self._hopeless:
            return None
        for candidates in choice:
            before, edges, pins = dict(found.bound), len(book.edges), len(book.pins)
            for candidate in candidates:
                found.bind(candidate, book)
            trial = self.groups()
            if not self.probe.has_run(trial, found.values(trial), failure.chosen):
                for candidate in alike(candidates, failure, found, grouping):
                    found.bind(candidate, book)
                trial = self.groups()
            again = self.probe.run(trial, found.values(trial), failure.chosen)
            if again is None or again.at > failure.at:
                found.proven.update(c.kind for c in candidates)
                return again or True
            found.bound = before
            del book.edges[edges:], book.pins[pins:]
            self._grouping, self._version = grouping, (edges, pins)
        if failed is not None:
            self._hopeless.add(failed)
        return None

    def _culprits(self, failure: Failure) -> list[Ids]:
        """Classes of the groups that make the forward fail where it failed: a number in the code
        does not say which widths it follows. Of all that were cut, halves that fail by themselves,
        down to single groups."""
        grouping, values, left = self.groups(), self.found.values(self.groups()), [MAX_HALVES]
        cut = {
            group.name: classes
            for group, classes in zip(grouping.groups, grouping.classes, strict=True)
            if not failure.keep[classes].all()
        }

        def fails(names: list[str]) -> bool:
            left[0] -= 1
            chosen = frozenset(names)
            return bool(names) and self.probe.fails_at(failure.at, grouping, values, chosen)

        def narrowed(names: list[str]) -> list[str]:
            if len(names) == 1 or left[0] <= 0:
                return names
            halves = [half for half in (names[::2], names[1::2]) if fails(half)]
            return [name for half in halves for name in narrowed(half)] or names

        return [cut[name] for name in narrowed(list(cut))] if cut else []

    def _pin_unproven(self, grouping: Grouping) -> bool:
        """What the smaller forward does not show; False if there is nothing of the kind."""
        uneven = [ids for ids in self.normed.values() if share(ids, grouping) is None]
        for ids in uneven:
            self.book.pin(ids, "an RMS norm reads some of its units more often than others")
        alone: list[Ids] = list(self.found.untried(grouping))
        for ids in alone:
            self.book.pin(ids, "a part of one channel cannot become smaller")
        return bool(uneven or alone)
