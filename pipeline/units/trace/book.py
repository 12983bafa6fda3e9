"""The book of units: ids, which of them are one unit, which must stay, which tensors they index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.units.groups import Role
from pipeline.units.leftovers.formula import Formula
from pipeline.units.trace.shadow import FIXED, Axis, Ids, ParamView, Shadow

PRIORITY: dict[Role, int] = {"consumer": 0, "norm": 1, "producer": 2}
UNSEEN = -1
LARGE = 1 << 14
"""Ids of an array that is not looked through twice."""


@dataclass(eq=False)
class Use:
    """Unit id of every position along one dimension of one tensor.

    What belongs together shares one array (`grouping` then looks at it once), so it is replaced,
    never written to.
    """

    ids: Ids
    role: Role


def distinct(numbers: Ids, count: int) -> Ids:
    """Sorted, each once; all are below `count`. Of many, np.unique takes ten times as long."""
    if numbers.size < count:
        return np.unique(numbers)
    found = np.zeros(count, dtype=bool)
    found[numbers] = True
    return np.flatnonzero(found)


def _varies(ids: Ids, dim: int) -> bool:
    """Do the ids differ along this dimension?"""
    if ids.shape[dim] == 1:
        return False
    head = ids.take([0], dim)
    corner = ids[tuple(-1 if d == dim else 0 for d in range(ids.ndim))] if ids.size else FIXED
    return bool(ids.size and head.flat[0] != corner) or bool((ids != head).any())


class Book:
    """Written while the forward runs, read once by `grouping`.

    Attributes:
        trained: names of parameters.
        statistics: of buffers that follow the channels of frozen batch norms.
        formulas: by code, of values that are a constant where their unit is zero.
        pending: layers that read such values (see `trace.leftovers`).
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], trained: frozenset[str]) -> None:
        self.shapes = shapes
        self.trained = trained
        self.statistics: frozenset[str] = frozenset()
        self.count = FIXED + 1
        self.edges: list[tuple[Ids, Ids]] = []
        self.pins: list[tuple[Ids, int]] = []
        self.locks: dict[str, int] = {}
        self.uses: dict[tuple[str, int], Use] = {}
        self.reasons = [""]
        self.splits: list[Ids] = []
        self.formulas: dict[int, Formula] = {}
        self.pending: list[Any] = []
        self._codes: dict[str, int] = {}
        self._present: dict[int, tuple[Ids, Ids]] = {}
        self._settled: dict[Any, int] = {}

    def code(self, reason: str) -> int:
        """Number of a reason in words, 1 and up."""
        if reason not in self._codes:
            self._codes[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self._codes[reason]

    def settled(self, key: Any, reason: str, formula: Formula) -> int:
        """A code of its own for a value that is not zero, because of `reason`, but a constant.

        One `key`, one formula.
        """
        if key not in self._settled:
            self._settled[key] = len(self.reasons)
            self.reasons.append(reason)
            self.formulas[self._settled[key]] = formula
        return self._settled[key]

    def plain(self, shadow: Shadow) -> Shadow:
        """The same, knowing of no constants: only the reasons why values may not be zero."""
        if shadow.code is not None:
            known = shadow.code in self.formulas
            return shadow.coded(self.code(self.reasons[shadow.code])) if known else shadow
        if not self.formulas:
            return shadow
        same = {c: self.code(self.reasons[c]) for c in self.formulas}
        table = np.arange(len(self.reasons))
        table[list(same)] = list(same.values())
        return Shadow(shadow.ids, table[shadow.nonzero])

    def fresh(self, n: int) -> Ids:
        """`n` new ids."""
        self.count += n
        return np.arange(self.count - n, self.count)

    def present(self, ids: Ids) -> Ids:
        """Each once. Of large arrays, which several tensors share, it is kept."""
        if ids.size < LARGE:
            return distinct(ids, self.count)
        seen, found = self._present.get(id(ids), (None, ids))
        if seen is not ids:
            found = distinct(ids, self.count)
            self._present[id(ids)] = ids, found
        return found

    def pin(self, ids: Ids, reason: str) -> None:
        """These units must stay."""
        ids = self.present(ids)
        ids = ids[ids != FIXED]
        if ids.size:
            self.pins.append((ids, self.code(reason)))

    def pin_coded(self, ids: Ids, codes: Ids) -> None:
        """The same with a reason per position; code 0 pins nothing."""
        for code in distinct(codes, len(self.reasons)):
            if code != 0:
                self.pin(ids[codes == code], self.reasons[code])

    def lock(self, name: str, reason: str) -> None:
        """No dimension of this tensor may be cut."""
        self.locks.setdefault(name, self.code(reason))

    def union(self, a: Ids, b: Ids, reason: str) -> Ids:
        """Positions of `a` and `b` (broadcast) live and die together; returns the joined ids.

        A unit that meets a fixed position must stay, because of `reason`.
        """
        if a is b:
            return a
        differ = a != b
        a = a if a.shape == differ.shape else np.broadcast_to(a, differ.shape)
        met = np.count_nonzero(differ)
        if not met:
            return a
        b = b if b.shape == differ.shape else np.broadcast_to(b, differ.shape)
        left, right = (a, b) if met == differ.size else (a[differ], b[differ])
        if np.count_nonzero(left) == met == np.count_nonzero(right):  # all free: FIXED is 0
            self.edges.append(self._thinned(left, right))
            return a
        free = (left != FIXED) & (right != FIXED)
        if free.any():
            self.edges.append(self._thinned(left[free], right[free]))
        self.pin(np.maximum(left, right)[~free], reason)
        return np.where(a == FIXED, b, a)

    def _thinned(self, left: Ids, right: Ids) -> tuple[Ids, Ids]:
        """Pairs that join the same: of many, most are there time and again."""
        if left.size < LARGE:
            return left, right
        left, right = left.ravel(), right.ravel()
        partner = np.empty(self.count, dtype=np.int64)
        partner[left] = right
        more = partner[left] != right
        once = distinct(left, self.count)
        return np.concatenate([once, left[more]]), np.concatenate([partner[once], right[more]])

    def tie(self, name: str, axis: Axis, ids: Ids, role: Role) -> None:
        """Position `axis.positions[i]` of that dimension of `name` belongs to unit `ids[i]`."""
        use = self.uses.get((name, axis.dim))
        if use is None and axis.whole and ids.shape == axis.positions.shape:
            self.uses[name, axis.dim] = Use(ids, role)
            return
        use = self._use(name, axis.dim, role)
        if use.ids is ids and axis.whole:
            return
        seen = use.ids[axis.positions]
        new = seen == UNSEEN
        if new.any():
            use.ids = use.ids.copy()
            use.ids[axis.positions[new]] = ids[new]
            seen = use.ids[axis.positions]
        self.union(seen, ids, f"{name} also serves channels that must stay")

    def axis_ids(self, name: str, axis: Axis, role: Role) -> Ids:
        """Ids of the positions of an axis, new ones where it was never used before."""
        use = self.uses.get((name, axis.dim))
        if use is None and axis.whole:
            made = self.fresh(axis.positions.size)
            self.uses[name, axis.dim] = Use(made, role)
            return made
        use = self._use(name, axis.dim, role)
        seen = use.ids if axis.whole else use.ids[axis.positions]
        new = axis.positions[seen == UNSEEN]
        if not new.size:
            return seen
        use.ids = use.ids.copy()
        use.ids[new] = self.fresh(new.size)
        return use.ids if axis.whole else use.ids[axis.positions]

    def ids_of(self, view: ParamView) -> Iterator[Ids]:
        """Ids along every dimension of a view that a unit was found on."""
        for axis in view.axes:
            use = None if axis is None else self.uses.get((view.name, axis.dim))
            if axis is not None and use is not None:
                ids = use.ids[axis.positions]
                yield ids[ids > FIXED]

    def _use(self, name: str, dim: int, role: Role) -> Use:
        use = self.uses.get((name, dim))
        if use is None:
            use = Use(np.full(self.shapes[name][dim], UNSEEN), role)
            self.uses[name, dim] = use
        if PRIORITY[role] > PRIORITY[use.role]:
            use.role = role
        return use

    def split(self, ids: Ids) -> None:
        """One dimension became several (channels of every head, halves of a shuffle).

        What is left of them must be a box again: only one of the dimensions may lose positions.
        Which one, operators downstream may decide; `settle` decides in the end.
        """
        self.splits.append(ids)

    def settle(self) -> None:
        """Where nothing else decided it, outer sizes stay and the innermost dimension shrinks."""
        labels = self.components() if self.splits else np.arange(0)
        for ids in self.splits:
            own = self.present(ids) if ids.size >= LARGE else ids
            found = ids if np.array_equal(labels[own], own) else labels[ids]
            varying = [d for d in range(ids.ndim) if _varies(found, d)]
            for d in varying[:-1]:
                reason = "a split of its dimension joins it with channels that must stay"
                self.union(ids, ids.take([0], d), reason)
            if len(varying) > 1:
                labels = self.components()

    def components(self) -> Ids:
        """Class of every id: the smallest id it is joined with."""
        label = np.arange(self.count)
        if not self.edges:
            return label
        a = np.concatenate([e[0].ravel() for e in self.edges])
        b = np.concatenate([e[1].ravel() for e in self.edges])
        while True:
            low = np.minimum(label[a], label[b])
            if np.array_equal(low, label[a]) and np.array_equal(low, label[b]):
                return label
            # Hook the roots, not only the two ends, so that whole trees move at once.
            for end in (label[a], label[b], a, b):
                np.minimum.at(label, end, low)
            while not np.array_equal(jump := label[label], label):
                label = jump
