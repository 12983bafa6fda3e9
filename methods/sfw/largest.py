"""The k largest entries of a tensor: exactly, without sorting it, without waiting for a device.

`torch.topk` returns them sorted and leaves ties to chance. A Frank-Wolfe step needs neither order
nor values, only the set, and the same set every time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating[Any]]

_SAMPLE = 4096
"""Entries looked at to bracket the k-th largest, plus one in `_SHARE`; a few times that is not
worth bracketing."""

_SHARE = 128

_DEVIATIONS = 4.0
"""Width of the bracket, in standard deviations of a rank in the sample."""

_CHUNK = 1 << 18
"""Entries compared at a time: temporaries that stay in the cache."""


def largest_signs(x: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """sign(x) at the k entries of largest magnitude, 0 elsewhere; sign(0) = 0.

    Among equal magnitudes the first in memory order win. On the CPU the k-th magnitude is
    bracketed by a sample and searched among the few entries inside the bracket; elsewhere
    `torch.topk`, a radix selection, finds it. Both are exact for any input.

    Args:
        x: any shape; k: at least 1, more than all entries means all.
        out: memory for the result, of x's shape and dtype, dense, not overlapping x.
    """
    if k >= x.numel():
        return torch.sign(x, out=out)
    size = torch.abs(x, out=out)
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        _keep_on_host(x, k, size)
        return size.sign_()
    flat = _in_memory_order(size)
    flat.copy_(_mask_on_device(flat, k))
    return size.mul_(x.sign())


def _in_memory_order(dense: Tensor) -> Tensor:
    return dense.as_strided((dense.numel(),), (1,))


def _mask_on_device(flat: Tensor, k: int) -> Tensor:
    """All shapes are known beforehand, so nothing is read back from the device."""
    bound = flat.topk(k, sorted=False).values.amin()
    above, ties = flat > bound, flat == bound
    room = k - above.sum()
    return above | (ties & (ties.cumsum(0) <= room))


def _keep_on_host(x: Tensor, k: int, size: Tensor) -> None:
    """Replace `size` = |x| by x where it is among the k largest and by 0 elsewhere."""
    flat = _in_memory_order(size)
    values = flat.numpy()
    bound, rank = _kth_largest(values, k)
    surplus = np.flatnonzero(values == bound)[k - rank :] if rank > k else None
    below = np.nextafter(bound, np.zeros_like(bound))  # hardshrink keeps what is larger
    torch.ops.aten.hardshrink.out(x, float(below), out=size)
    if surplus is not None:
        flat[torch.from_numpy(surplus)] = 0.0


def _kth_largest(values: Floats, k: int) -> tuple[np.floating[Any], int]:
    """The k-th largest value, and how many values are at least as large (k without ties)."""
    above, inside = 0, values
    if values.size > 4 * _SAMPLE:
        above, inside = _split(values, *_bracket(values, k))
        if not above < k <= above + inside.size:
            above, inside = 0, values
    rank = inside.size - (k - above)
    bound = np.partition(inside, rank)[rank]
    return bound, above + int(np.count_nonzero(inside >= bound))


def _bracket(values: Floats, k: int) -> tuple[np.floating[Any], np.floating[Any]]:
    """Two values that almost surely enclose the k-th largest; a wrong guess costs time only."""
    wanted = _SAMPLE + values.size // _SHARE
    stride = (values.size // wanted) | 1  # odd: does not lock on to a power-of-two layout
    sample = values[::stride]
    kept = k / values.size
    slack = _DEVIATIONS * np.sqrt(sample.size * kept * (1.0 - kept)) + 2.0
    middle = sample.size * (1.0 - kept)
    low, high = max(int(middle - slack), 0), min(int(middle + slack), sample.size - 1)
    ordered = np.partition(sample, (low, high))
    return ordered[low], ordered[high]


def _split(values: Floats, low: np.floating[Any], high: np.floating[Any]) -> tuple[int, Floats]:
    """How many values are above `high`, and the values in [low, high]."""
    above, inside = 0, []
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        over = part > high
        above += int(np.count_nonzero(over))
        inside.append(part[(part >= low) ^ over])
    return above, np.concatenate(inside)
