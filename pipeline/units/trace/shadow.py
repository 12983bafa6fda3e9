"""What a tensor of the traced forward carries: unit ids for activations, axes for parameters.

A shadow has as many dimensions as its tensor and size 1 in every dimension along which the ids do
not vary, so a feature map (N, C, H, W) has a shadow of shape (1, C, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# The classes are not frozen, though nothing changes them: thousands are made in a trace, and one
# that is frozen takes three times as long to make. Arrays are shared: nothing writes into one.

FIXED = 0
"""Id of positions that belong to no unit: the network's input, constants, padding."""


class Shadow:
    """Unit ids of an activation.

    Most shadows have one residue everywhere. It is kept as a number, since numpy takes longer to
    make and to look through the smallest array than the rest of a rule.

    Attributes:
        ids: unit id per position; FIXED where there is none.
        code: what `nonzero` holds at every position, where that is known.
        flat: where one dimension varies: that, and the shadow with it alone, once it was made.
    """

    __slots__ = ("_nonzero", "code", "flat", "ids")

    def __init__(self, ids: Ids, nonzero: Ids | int) -> None:
        self.ids = ids
        self.flat: tuple[int, Shadow] | None = None
        if isinstance(nonzero, int):
            self._nonzero: Ids | None = None
            self.code: int | None = nonzero
        else:
            self._nonzero = nonzero
            self.code = None

    @property
    def nonzero(self) -> Ids:
        """Of the shape of `ids`; 0 where the value is exactly zero once the unit's zero-invariant
        part is zero, else the number of the reason why it may not be (see `Book.code`)."""
        if self._nonzero is None:
            self._nonzero = np.full(self.ids.shape, self.code)
        return self._nonzero

    @property
    def residue(self) -> Ids | int:
        """`nonzero`, as one number where that is known."""
        return self.nonzero if self.code is None else self.code

    @property
    def zero(self) -> bool:
        """Is `nonzero` 0 everywhere?"""
        if self.code is None and not np.count_nonzero(self.nonzero):
            self.code = 0
        return self.code == 0

    @property
    def ndim(self) -> int:
        return self.ids.ndim

    @property
    def varying(self) -> tuple[int, ...]:
        """Dimensions along which the ids differ."""
        return tuple([d for d, n in enumerate(self.ids.shape) if n > 1])

    def coded(self, code: int) -> Shadow:
        """The same ids with another residue everywhere."""
        if code == self.code:
            return self
        new = Shadow(self.ids, code)
        if self.flat is not None:
            new.flat = self.flat[0], Shadow(self.flat[1].ids, code)
        return new

    def alone(self, dim: int) -> Shadow | None:
        """Itself with this dimension alone, where that has been made already."""
        return self.flat[1] if self.flat is not None and self.flat[0] == dim else None

    def headed(self, dim: int) -> Shadow:
        """The ids of the first position along `dim` with the largest residue along it."""
        head = self.ids.take([0], dim)
        if self.code is not None:
            return Shadow(head, self.code)
        return Shadow(head, self.nonzero.max(axis=dim, keepdims=True))

    def spread(self, shape: Sequence[int], dims: Sequence[int]) -> Shadow:
        """With `dims` at their full size in the tensor of `shape`, the others as they are."""
        full = tuple([shape[d] if d in dims else n for d, n in enumerate(self.ids.shape)])
        return self if full == self.ids.shape else self._moved(np.broadcast_to, full)

    def narrow(self) -> Shadow:
        """The same with size 1 wherever nothing varies."""
        if self.flat is not None and self.flat[1].ids[0] != self.flat[1].ids[-1]:
            return self
        made = self
        for axis, n in enumerate(self.ids.shape):
            if n == 1:
                continue
            ids, start = made.ids, (0,) * axis
            if ids[(0,) * ids.ndim] != ids[start + (-1,) + (0,) * (ids.ndim - axis - 1)]:
                continue
            one = made.at((slice(None),) * axis + (slice(0, 1),))
            if same(made, one._moved(np.broadcast_to, ids.shape)):
                made = one
        return made

    def permute(self, dims: Sequence[int]) -> Shadow:
        new = self._moved(np.ndarray.transpose, dims)
        if self.flat is not None:
            new.flat = list(dims).index(self.flat[0]), self.flat[1]
        return new

    def shaped(self, shape: Sequence[int]) -> Shadow:
        """numpy's reshape of the shadow itself."""
        return self._moved(np.ndarray.reshape, shape)

    def at(self, index: tuple[slice, ...]) -> Shadow:
        return self._moved(np.ndarray.__getitem__, index)

    def _moved(self, how: Callable[[Ids, Any], Ids], where: Any) -> Shadow:
        ids = how(self.ids, where)
        return Shadow(ids, how(self.nonzero, where) if self.code is None else self.code)


def worse(a: Ids | int, b: Ids | int) -> Ids | int:
    """The larger residue, position by position."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    found: Ids = np.maximum(a, b)
    return found


def same(a: Shadow, b: Shadow) -> bool:
    """Equal ids and residues."""
    if a is b:
        return True
    if a.ids is not b.ids and not np.array_equal(a.ids, b.ids):
        return False
    if a.code is not None and b.code is not None and a.ids.size:
        return a.code == b.code
    return np.array_equal(a.nonzero, b.nonzero)


def along(ids: Ids, nonzero: Ids | int, ndim: int, dim: int) -> Shadow:
    """A shadow of `ndim` dimensions whose ids, given in one, vary along `dim` only."""
    dim %= ndim
    flat = Shadow(ids, nonzero)
    made = flat.shaped([-1 if d == dim else 1 for d in range(ndim)])
    made.flat = dim, flat
    return made


@cache
def _fixed(ndim: int) -> Ids:
    made = np.full((1,) * ndim, FIXED)
    made.setflags(write=False)
    return made


def uniform(ndim: int, code: int) -> Shadow:
    """No unit anywhere; `code` 0 for zeros, else why the values may not be zero."""
    return Shadow(_fixed(ndim), code)


@dataclass(eq=False, slots=True)
class Axis:
    """One dimension of a view of a parameter: these positions of that dimension of it, all of them
    in order where it is `whole`."""

    dim: int
    positions: Ids
    whole: bool = False


@dataclass(eq=False, slots=True)
class ParamView:
    """A parameter or buffer, or a view of one; None where the view has an extra dimension."""

    name: str
    axes: tuple[Axis | None, ...]

    @property
    def wide(self) -> tuple[int, ...]:
        """Dimensions of size above 1."""
        return tuple(d for d, a in enumerate(self.axes) if a is not None and a.positions.size > 1)


Value = Shadow | ParamView


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[slice, slice]]:
    """Which dimensions of `old` become which of `new` in a view: pairs of equal product.

    Sizes must be positive.
    """
    pairs = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        a = b = 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        pairs.append((slice(i0, i), slice(j0, j)))
    return pairs
