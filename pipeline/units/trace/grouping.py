"""From the book of units to channel groups: classes that index the same tensors alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.units.groups import ChannelGroup, Role, Slice, layer_of
from pipeline.units.trace.book import Book
from pipeline.units.trace.shadow import FIXED, Ids

SHOWN_REASONS = 3
NO_PRODUCER = "no layer produces it"
Hashes = NDArray[np.uint64]
GOLDEN, MASK = 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF
NEVER = np.iinfo(np.int64).max


@dataclass(eq=False, slots=True)
class _Line:
    """The positions along a dimension that belong to units, and their classes.

    Dimensions that share one array of ids are one line: those of a convolution, its bias and its
    batch norm.

    Attributes:
        cuts: numbers of the dimensions, in order of use.
        first: the first of them that produces; the first of all where none does.
        produced: does one produce?
    """

    positions: Ids
    classes: Ids
    cuts: list[int]
    first: int = 0
    produced: bool = False

    def add(self, cut: int, role: Role) -> None:
        if not self.cuts or (role == "producer" and not self.produced):
            self.first, self.produced = cut, role == "producer"
        self.cuts.append(cut)


@dataclass(eq=False, slots=True)
class _Cut:
    """One dimension of one tensor."""

    tensor: str
    dim: int
    role: Role
    line: _Line


class _Lines:
    """All lines one after the other, to be looked at in one go.

    Attributes:
        classes: of all positions.
        number: of the line that each of them is in.
    """

    def __init__(self, book: Book, labels: Ids) -> None:
        known: dict[int, _Line] = {}
        self.cuts: list[_Cut] = []
        for (tensor, dim), use in book.uses.items():
            line = known.get(id(use.ids))
            if line is None:
                positions = np.flatnonzero(use.ids > FIXED)
                line = known[id(use.ids)] = _Line(positions, labels[use.ids[positions]], [])
            if line.positions.size:
                line.add(len(self.cuts), use.role)
                self.cuts.append(_Cut(tensor, dim, use.role, line))
        self.lines = [line for line in known.values() if line.cuts]
        self.sizes = [line.positions.size for line in self.lines]
        self.number = np.repeat(np.arange(len(self.lines)), self.sizes)
        nothing = np.zeros(0, dtype=np.int64)
        self.classes = np.concatenate([nothing, *(line.classes for line in self.lines)])

    def per_position(self, per_line: list[Any]) -> Any:
        return np.repeat(np.array(per_line), self.sizes)

    def where(self, broken: NDArray[np.bool_]) -> set[int]:
        """Lines in which this holds between two neighbours."""
        inside = broken & (self.number[1:] == self.number[:-1])
        return set(self.number[1:][inside].tolist())


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups in forward order, the classes of their channels, the class of every id.

    `owner` is the number of the group of every class, -1 for none.
    """

    groups: tuple[ChannelGroup, ...]
    classes: tuple[Ids, ...]
    labels: Ids
    owner: Ids


class Reader:
    """Reads a book whose uses are complete. What its edges decide is kept until they change."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._edges: tuple[int, Any] | None = None

    def groups(self) -> Grouping:
        """What the book says now."""
        edges = self._book.edges
        now = len(edges), edges[-1] if edges else None
        if self._edges is None or self._edges[0] != now[0] or self._edges[1] is not now[1]:
            self._edges, self._labels = now, self._book.components()
            self._lines = _Lines(self._book, self._labels)
        return _make_groups(self._book, self._labels, self._lines)


def _make_groups(book: Book, labels: Ids, lines: _Lines) -> Grouping:
    if not lines.cuts:
        return Grouping((), (), labels, np.full(book.count, -1))
    stays = [(labels[ids], code) for ids, code in book.pins]
    if book.locks:
        locked = ((c, book.locks.get(c.tensor)) for c in lines.cuts)
        stays += [(c.line.classes, code) for c, code in locked if code is not None]
    orphans = _orphans(lines, stays, book.count)
    if orphans.size:
        stays.append((orphans, book.code(NO_PRODUCER)))
    order, borders = _partition(lines, stays, book.count)
    members = [order[a:b] for a, b in pairwise(borders)]
    owner, rank = np.full(book.count, -1), np.zeros(book.count, dtype=np.int64)
    widths = np.diff(borders)
    owner[order] = np.repeat(np.arange(len(members)), widths)
    rank[order] = np.arange(order.size) - np.repeat(borders[:-1], widths)
    slices = _slices(lines, members, owner, rank)
    words = _words(stays, len(members), (owner, rank), book.reasons)
    return Grouping(_build(members, slices, words), tuple(members), labels, owner)


def _orphans(lines: _Lines, stays: list[tuple[Ids, int]], count: int) -> Ids:
    """Classes that no layer produces, where nothing else keeps them."""
    orphan = np.zeros(count, dtype=bool)
    orphan[lines.classes] = True
    orphan[lines.classes[lines.per_position([line.produced for line in lines.lines])]] = False
    for classes, _ in stays:
        orphan[classes] = False
    return np.flatnonzero(orphan)


def _first_seen(lines: _Lines, count: int) -> Ids:
    """Per class: where it first is produced (where it first occurs, if nowhere), as a sort key."""
    span = 1 + max(int(line.positions[-1]) for line in lines.lines)
    late = len(lines.cuts) * span
    first = np.full(count, 2 * late)
    base = [line.first * span + (0 if line.produced else late) for line in lines.lines]
    where = lines.per_position(base)
    where += np.concatenate([line.positions for line in lines.lines])
    np.minimum.at(first, lines.classes, where)
    return first


def _mix(x: Hashes) -> Hashes:
    """splitmix64: sums of mixed numbers tell different sets apart."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _partition(lines: _Lines, stays: list[tuple[Ids, int]], count: int) -> tuple[Ids, list[int]]:
    """Classes with the same number of positions in the same tensors, in order of production: one
    group after the other, and where each begins, the last one's end included.

    Those that must stay are apart from those that need not.
    """
    signature, tally = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.int64)
    keys = np.array([(n + 1) * GOLDEN & MASK for n in range(len(lines.cuts))], dtype=np.uint64)
    once = _mix(keys + np.uint64(1))
    repeating = lines.where(lines.classes[1:] <= lines.classes[:-1])
    for number in repeating:
        line = lines.lines[number]
        tally[line.classes] = 0
        np.add.at(tally, line.classes, 1)
        times = tally[line.classes].astype(np.uint64)
        for cut in line.cuts:
            signature[line.classes] += _mix(times + keys[cut])
    added = [
        np.uint64(0) if number in repeating else np.add.reduce(once[line.cuts])
        for number, line in enumerate(lines.lines)
    ]
    np.add.at(signature, lines.classes, lines.per_position(added))
    pinned = np.zeros(count, dtype=bool)
    for classes, _ in stays:
        pinned[classes] = True
    signature[pinned] += np.uint64(1)
    present = np.zeros(count, dtype=bool)
    present[lines.classes] = True
    found = np.flatnonzero(present)
    found = found[np.argsort(_first_seen(lines, count)[found], kind="stable")]
    _, start, which = np.unique(signature[found], return_index=True, return_inverse=True)
    place = np.empty_like(start)
    place[np.argsort(start)] = np.arange(start.size)
    number_of = place[which]
    order = np.argsort(number_of, kind="stable")
    return found[order], [0, *np.cumsum(np.bincount(number_of)).tolist()]


def _slices(lines: _Lines, members: list[Ids], owner: Ids, rank: Ids) -> list[list[Slice]]:
    """Per group: its share of every cut, channel by channel."""
    group, place = owner[lines.classes], rank[lines.classes]
    mixed = lines.where((group[1:] != group[:-1]) | (place[1:] < place[:-1]))
    shares: dict[int, list[tuple[int, Tensor]]] = {}
    start = 0
    for number, (line, size) in enumerate(zip(lines.lines, lines.sizes, strict=True)):
        whole = slice(start, start + size)
        start += size
        parts = [(int(group[whole.start]), line.positions)]
        if number in mixed:
            parts = _parts(line.positions, place[whole], group[whole])
        shares[id(line)] = [
            (g, torch.from_numpy(part.reshape(members[g].size, -1))) for g, part in parts
        ]
    slices: list[list[Slice]] = [[] for _ in members]
    for cut in lines.cuts:
        for g, index in shares[id(cut.line)]:
            slices[g].append(Slice(cut.tensor, cut.dim, cut.role, index))
    return slices


def _parts(positions: Ids, place: Ids, group: Ids) -> list[tuple[int, Ids]]:
    """Positions by group, in the order of its channels."""
    order = np.lexsort((positions, place, group))
    group, positions = group[order], positions[order]
    starts = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist()]
    numbers = group[starts].tolist()
    ends = [*starts[1:], positions.size]
    return [(g, positions[a:b]) for g, a, b in zip(numbers, starts, ends, strict=True)]


def _words(
    stays: list[tuple[Ids, int]], groups: int, place: tuple[Ids, Ids], reasons: list[str]
) -> list[str]:
    """Per group: why it must stay, the reasons of its first channel first; "" if it need not."""
    if not stays:
        return [""] * groups
    owner, rank = place
    classes = np.concatenate([c for c, _ in stays])
    number = np.repeat(np.arange(len(stays)), [c.size for c, _ in stays])
    code = np.array([c for _, c in stays])[number]
    known = owner[classes] >= 0
    classes, number, code = classes[known], number[known], code[known]
    # The first (channel, reason given) at which a group meets every code.
    when = np.full((groups, len(reasons)), NEVER)
    np.minimum.at(when, (owner[classes], code), rank[classes] * len(stays) + number)
    shown = [""] * groups
    for g in np.unique(owner[classes]).tolist():
        row = when[g]
        codes = np.flatnonzero(row < NEVER)
        codes = codes[np.argsort(row[codes])][:SHOWN_REASONS]
        shown[g] = "; ".join(reasons[c] for c in codes.tolist())
    return shown


def _build(
    members: list[Ids], slices: list[list[Slice]], words: list[str]
) -> tuple[ChannelGroup, ...]:
    names: dict[str, int] = {}
    return tuple(
        ChannelGroup(_name(own, names), classes.size, tuple(own), not why, why)
        for classes, own, why in zip(members, slices, words, strict=True)
    )


def _name(slices: list[Slice], taken: dict[str, int]) -> str:
    """Module of the first producer; a second group of the same module is "name~2"."""
    source = next((s for s in slices if s.role == "producer"), slices[0]).tensor
    name = layer_of(source)
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}~{taken[name]}"
