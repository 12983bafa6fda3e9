"""Large arrays of ids say what small ones do."""

from __future__ import annotations

import numpy as np

from pipeline.units.trace.book import LARGE, Book


def test_pairs_that_repeat_are_kept_once() -> None:
    rng = np.random.default_rng(0)
    book, plain = Book({}, frozenset()), Book({}, frozenset())
    ids = book.fresh(60)
    plain.fresh(60)
    left, right = rng.choice(ids, 9), rng.choice(ids, 9)
    left[:3], right[3:6] = left[0], right[3]  # one id meets several, on either side
    times = LARGE // 4
    book.union(np.tile(left, times), np.tile(right, times), "")
    plain.union(left, right, "")
    assert sum(a.size for a, _ in book.edges) < 3 * times
    assert np.array_equal(book.components(), plain.components())


def test_large_splits_settle_as_small_ones() -> None:
    """Heads and features of every position; the innermost dimension shrinks."""
    found = []
    for positions in (2, LARGE):
        book = Book({}, frozenset())
        ids = book.fresh(12).reshape(1, 3, 4)
        book.split(np.tile(ids, (positions, 1, 1)))
        book.settle()
        found.append(book.components())
    assert np.array_equal(*found)
    assert len(np.unique(found[0][1:])) == 4


def test_large_arrays_are_pinned_as_small_ones() -> None:
    book = Book({}, frozenset())
    ids = book.fresh(5)
    large = np.tile(ids[1:3], LARGE)
    for array in (large, large, np.tile(ids[3:], LARGE)):
        book.pin(array, "why")
    assert [pinned.tolist() for pinned, _ in book.pins] == [[2, 3], [2, 3], [4, 5]]
