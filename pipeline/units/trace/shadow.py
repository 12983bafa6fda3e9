"""What a tensor of the traced forward carries: unit ids for activations, axes for parameters.

A shadow has as many dimensions as its tensor and size 1 in every dimension along which the ids do
not vary, so a feature map (N, C, H, W) has a shadow of shape (1, C, 1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# The classes are not frozen, though nothing changes them: thousands are made in a trace, and one
# that is frozen takes three times as long to make.

FIXED = 0
"""Id of positions that belong to no unit: the network's input, constants, padding."""


@dataclass(eq=False, slots=True)
class Shadow:
    """Unit ids of an activation.

    Attributes:
        ids: unit id per position; FIXED where there is none.
        nonzero: same shape; 0 where the value is exactly zero once the unit's zero-invariant part
            is zero, else the number of the reason why it may not be (see `Book.code`).
    """

    ids: Ids
    nonzero: Ids

    @property
    def ndim(self) -> int:
        return self.ids.ndim

    @property
    def varying(self) -> tuple[int, ...]:
        """Dimensions along which the ids differ."""
        return tuple([d for d, n in enumerate(self.ids.shape) if n > 1])

    def spread(self, shape: Sequence[int], dims: Sequence[int]) -> Shadow:
        """With `dims` at their full size in the tensor of `shape`, the others as they are."""
        full = tuple(shape[d] if d in dims else n for d, n in enumerate(self.ids.shape))
        if full == self.ids.shape:
            return self
        return Shadow(np.broadcast_to(self.ids, full), np.broadcast_to(self.nonzero, full))

    def narrow(self) -> Shadow:
        """The same with size 1 wherever nothing varies."""
        ids, nonzero = self.ids, self.nonzero
        for axis, n in enumerate(ids.shape):
            if n == 1:
                continue
            first = (slice(None),) * axis + (slice(0, 1),)
            if ids[(0,) * ids.ndim] != ids[(0,) * axis + (-1,) + (0,) * (ids.ndim - axis - 1)]:
                continue
            if np.array_equal(ids, np.broadcast_to(ids[first], ids.shape)) and np.array_equal(
                nonzero, np.broadcast_to(nonzero[first], ids.shape)
            ):
                ids, nonzero = ids[first], nonzero[first]
        return self if ids is self.ids else Shadow(ids, nonzero)

    def permute(self, dims: Sequence[int]) -> Shadow:
        return Shadow(self.ids.transpose(dims), self.nonzero.transpose(dims))

    def shaped(self, shape: Sequence[int]) -> Shadow:
        """numpy's reshape of the shadow itself."""
        return Shadow(self.ids.reshape(shape), self.nonzero.reshape(shape))

    def at(self, index: tuple[slice, ...]) -> Shadow:
        return Shadow(self.ids[index], self.nonzero[index])


def same(a: Shadow, b: Shadow) -> bool:
    """Equal ids and residues."""
    return a is b or (np.array_equal(a.ids, b.ids) and np.array_equal(a.nonzero, b.nonzero))


def along(ids: Ids, nonzero: Ids, ndim: int, dim: int) -> Shadow:
    """A shadow of `ndim` dimensions whose ids vary along `dim` only."""
    shape = [1] * ndim
    shape[dim] = -1
    return Shadow(ids.reshape(shape), nonzero.reshape(shape))


def uniform(ndim: int, code: int) -> Shadow:
    """No unit anywhere; `code` 0 for zeros, else why the values may not be zero."""
    shape = (1,) * ndim
    return Shadow(np.full(shape, FIXED), np.full(shape, code))


@dataclass(eq=False, slots=True)
class Axis:
    """One dimension of a view of a parameter: these positions of that dimension of it."""

    dim: int
    positions: Ids


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
