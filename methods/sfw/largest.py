"""Exact selection of the k largest entries of a tensor, without sorting or synchronisation.

`torch.topk` sorts its result and breaks ties arbitrarily. A Frank-Wolfe step needs neither order
nor values, only the set of entries, and the same set on every run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.selection.threshold import kth_largest


def largest_signs(x: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """sign(x) at the k entries of largest magnitude, 0 elsewhere; sign(0) = 0.

    Ties go to the first entries in memory order. On the CPU, `kth_largest` finds the k-th
    magnitude; on other devices `torch.topk`, a radix selection, does. Both are exact for any input.

    Args:
        x: any shape.
        k: at least 1; at least the number of entries selects all.
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
    """All shapes are static, so nothing is read back from the device."""
    bound = flat.topk(k, sorted=False).values.amin()
    above, ties = flat > bound, flat == bound
    room = k - above.sum()
    return above | (ties & (ties.cumsum(0) <= room))


def _keep_on_host(x: Tensor, k: int, size: Tensor) -> None:
    """Replace `size` = |x| by x where it is among the k largest and by 0 elsewhere."""
    flat = _in_memory_order(size)
    values = flat.numpy()
    bound, rank = kth_largest([values], k)
    surplus = np.flatnonzero(values == bound)[k - rank :] if rank > k else None
    below = np.nextafter(bound, np.zeros_like(bound))  # hardshrink keeps what is larger
    torch.ops.aten.hardshrink.out(x, float(below), out=size)
    if surplus is not None:
        flat[torch.from_numpy(surplus)] = 0.0
