"""From the book of units to channel groups: classes that index the same tensors alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.units.groups import ChannelGroup, Role, Slice, layer_of
from pipeline.units.trace.book import Book
from pipeline.units.trace.shadow import FIXED, Ids

SHOWN_REASONS = 3
NO_PRODUCER = "no layer produces it"
Hashes = NDArray[np.uint64]
GOLDEN, MASK = 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF
NEVER = np.iinfo(np.int64).max


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
    if not cuts:
        return Grouping((), (), labels, np.full(book.count, -1))
    stays = [(labels[ids], code) for ids, code in book.pins]
    stays += [(c.classes, book.locks[c.tensor]) for c in cuts if c.tensor in book.locks]
    orphans = _orphans(cuts, stays, book.count)
    if orphans.size:
        stays.append((orphans, book.code(NO_PRODUCER)))
    members = _partition(cuts, _first_seen(cuts, book.count), stays)
    owner, rank = np.full(book.count, -1), np.zeros(book.count, dtype=np.int64)
    for g, classes in enumerate(members):
        owner[classes] = g
        rank[classes] = np.arange(classes.size)
    slices = _slices(cuts, members, owner, rank)
    words = _words(stays, len(members), (owner, rank), book.reasons)
    return Grouping(_build(members, slices, words), tuple(members), labels, owner)


def _orphans(cuts: list[_Cut], stays: list[tuple[Ids, int]], count: int) -> Ids:
    """Classes that no layer produces, where nothing else keeps them."""
    orphan = np.zeros(count, dtype=bool)
    for cut in cuts:
        orphan[cut.classes] = True
    for cut in cuts:
        if cut.role == "producer":
            orphan[cut.classes] = False
    for classes, _ in stays:
        orphan[classes] = False
    return np.flatnonzero(orphan)


def _first_seen(cuts: list[_Cut], count: int) -> Ids:
    """Per class: where it first is produced (where it first occurs, if nowhere), as a sort key."""
    span = 1 + max(int(c.positions[-1]) for c in cuts)
    late = len(cuts) * span
    first = np.full(count, 2 * late)
    base = [n * span + (0 if c.role == "producer" else late) for n, c in enumerate(cuts)]
    where = np.repeat(base, [c.positions.size for c in cuts])
    where += np.concatenate([c.positions for c in cuts])
    np.minimum.at(first, np.concatenate([c.classes for c in cuts]), where)
    return first


def _mix(x: Hashes) -> Hashes:
    """splitmix64: sums of mixed numbers tell different sets apart."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _partition(cuts: list[_Cut], first: Ids, stays: list[tuple[Ids, int]]) -> list[Ids]:
    """Classes with the same number of positions in the same tensors, in order of production.

    Those that must stay are apart from those that need not.
    """
    signature, tally = np.zeros(first.size, dtype=np.uint64), np.zeros(first.size, dtype=np.int64)
    present = np.zeros(first.size, dtype=bool)
    keys = np.array([(n + 1) * GOLDEN & MASK for n in range(len(cuts))], dtype=np.uint64)
    once = _mix(keys + np.uint64(1))
    for number, cut in enumerate(cuts):
        present[cut.classes] = True
        if _rising(cut.classes):
            signature[cut.classes] += once[number]
        else:
            tally[cut.classes] = 0
            np.add.at(tally, cut.classes, 1)
            signature[cut.classes] += _mix(tally[cut.classes].astype(np.uint64) + keys[number])
    pinned = np.zeros(first.size, dtype=bool)
    for classes, _ in stays:
        pinned[classes] = True
    signature[pinned] += np.uint64(1)
    found = np.flatnonzero(present)
    found = found[np.argsort(first[found], kind="stable")]
    _, start, which = np.unique(signature[found], return_index=True, return_inverse=True)
    place = np.empty_like(start)
    place[np.argsort(start)] = np.arange(start.size)
    number_of = place[which]
    order = np.argsort(number_of, kind="stable")
    borders = np.cumsum(np.bincount(number_of))[:-1]
    return np.split(found[order], borders)


def _rising(x: Ids) -> bool:
    """Then no value occurs twice."""
    return bool((x[1:] > x[:-1]).all())


def _slices(cuts: list[_Cut], members: list[Ids], owner: Ids, rank: Ids) -> list[list[Slice]]:
    """Per group: its share of every cut, channel by channel."""
    slices: list[list[Slice]] = [[] for _ in members]
    for cut in cuts:
        group, place = owner[cut.classes], rank[cut.classes]
        if (group[0] == group).all() and (place[1:] >= place[:-1]).all():
            parts = [cut.positions]
        else:
            order = np.lexsort((cut.positions, place, group))
            group = group[order]
            starts = np.flatnonzero(group[1:] != group[:-1]) + 1
            parts = np.split(cut.positions[order], starts)
            group = group[np.concatenate(([0], starts))]
        for g, part in zip(group.tolist(), parts, strict=False):
            index = torch.from_numpy(part.reshape(members[g].size, -1))
            slices[g].append(Slice(cut.tensor, cut.dim, cut.role, index))
    return slices


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
    shown = []
    for row in when:
        codes = np.flatnonzero(row < NEVER)
        codes = codes[np.argsort(row[codes])][:SHOWN_REASONS]
        shown.append("; ".join(reasons[c] for c in codes.tolist()))
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
