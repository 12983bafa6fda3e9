"""From the book of units to channel groups: classes that index the same tensors alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.units.groups import ChannelGroup, Role, Slice
from pipeline.units.trace.book import Book
from pipeline.units.trace.shadow import FIXED, Ids

SHOWN_REASONS = 3
NO_PRODUCER = "no layer produces it"
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One dimension of one tensor: the class of every position that belongs to a unit."""

    tensor: str
    dim: int
    role: Role
    positions: Ids
    classes: Ids


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups in forward order, the classes of their channels, the class of every id.

    `owner` is the number of the group of every class, -1 for none.
    """

    groups: tuple[ChannelGroup, ...]
    classes: tuple[Ids, ...]
    labels: Ids
    owner: Ids


def make_groups(book: Book) -> Grouping:
    """Read the book."""
    labels = book.components()
    cuts = []
    for (tensor, dim), use in book.uses.items():
        positions = np.flatnonzero(use.ids > FIXED)
        if positions.size:
            cuts.append(_Cut(tensor, dim, use.role, positions, labels[use.ids[positions]]))
    reasons = _reasons(book, cuts, labels)
    first = _first_seen(cuts, book.count)
    members = _partition(cuts, first, reasons)
    owner = np.full(book.count, -1)
    for g, classes in enumerate(members):
        owner[classes] = g
    return Grouping(_build(cuts, members, reasons, book), tuple(members), labels, owner)


def _reasons(book: Book, cuts: list[_Cut], labels: Ids) -> dict[int, list[int]]:
    """Class -> codes of the reasons why it must stay."""
    found: dict[int, list[int]] = {}
    locked = [(c.classes, book.locks[c.tensor]) for c in cuts if c.tensor in book.locks]
    for classes, code in [*((labels[ids], code) for ids, code in book.pins), *locked]:
        for c in np.unique(classes).tolist():
            codes = found.setdefault(c, [])
            if code not in codes:
                codes.append(code)
    produced: set[int] = set()
    for cut in cuts:
        if cut.role == "producer":
            produced.update(np.unique(cut.classes).tolist())
    for cut in cuts:
        for c in np.unique(cut.classes).tolist():
            if c not in produced and c not in found:
                found[c] = [book.code(NO_PRODUCER)]
    return found


def _first_seen(cuts: list[_Cut], count: int) -> Ids:
    """Per class: where it first is produced (where it first occurs, if nowhere), as a sort key."""
    span = 1 + max((int(c.positions.max()) for c in cuts), default=0)
    late = len(cuts) * span
    first = np.full(count, 2 * late)
    for number, cut in enumerate(cuts):
        base = number * span + (0 if cut.role == "producer" else late)
        np.minimum.at(first, cut.classes, base + cut.positions)
    return first


def _mix(x: Hashes) -> Hashes:
    """splitmix64: sums of mixed numbers tell different sets apart."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _partition(cuts: list[_Cut], first: Ids, reasons: dict[int, list[int]]) -> list[Ids]:
    """Classes with the same number of positions in the same tensors, in order of production."""
    signature = np.zeros(first.size, dtype=np.uint64)
    for number, cut in enumerate(cuts):
        classes, counts = np.unique(cut.classes, return_counts=True)
        key = np.uint64((number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        signature[classes] += _mix(counts.astype(np.uint64) + key)
    if not cuts:
        return []
    present = np.unique(np.concatenate([c.classes for c in cuts]))
    pinned = np.array(sorted(reasons), dtype=np.int64)
    signature[pinned] += np.uint64(1)
    present = present[np.argsort(first[present], kind="stable")]
    _, start, which = np.unique(signature[present], return_index=True, return_inverse=True)
    order = np.argsort(start)
    return [present[which == g] for g in order.tolist()]


def _build(
    cuts: list[_Cut], members: list[Ids], reasons: dict[int, list[int]], book: Book
) -> tuple[ChannelGroup, ...]:
    group_of, rank = np.zeros(book.count, dtype=np.int64), np.zeros(book.count, dtype=np.int64)
    for g, classes in enumerate(members):
        group_of[classes] = g
        rank[classes] = np.arange(classes.size)
    slices: list[list[Slice]] = [[] for _ in members]
    for cut in cuts:
        order = np.lexsort((cut.positions, rank[cut.classes], group_of[cut.classes]))
        owner = group_of[cut.classes][order]
        borders = np.flatnonzero(np.diff(owner)) + 1
        for part in np.split(order, borders):
            g = int(group_of[cut.classes[part[0]]])
            index = torch.from_numpy(cut.positions[part].reshape(members[g].size, -1))
            slices[g].append(Slice(cut.tensor, cut.dim, cut.role, index))
    names: dict[str, int] = {}
    groups = []
    for classes, own in zip(members, slices, strict=True):
        codes = dict.fromkeys(code for c in classes.tolist() for code in reasons.get(c, ()))
        words = "; ".join([book.reasons[code] for code in codes][:SHOWN_REASONS])
        groups.append(ChannelGroup(_name(own, names), classes.size, tuple(own), not words, words))
    return tuple(groups)


def _name(slices: list[Slice], taken: dict[str, int]) -> str:
    """Module of the first producer; a second group of the same module is "name~2"."""
    source = next((s for s in slices if s.role == "producer"), slices[0]).tensor
    name = source.rpartition(".")[0] or source
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}~{taken[name]}"
