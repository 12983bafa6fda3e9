"""The exact k-th number of many, by bracketing instead of sorting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating[Any]]

SAMPLE = 4096
"""Entries sampled to bracket the k-th largest, plus one in `SHARE`; a few times that is not worth
bracketing."""

SHARE = 128

DEVIATIONS = 4.0
"""Half-width of the bracket, in standard deviations of a rank in the sample."""

CHUNK = 1 << 18
"""Entries compared at a time: temporaries that stay in the cache."""


def kth_smallest(values: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest (1-based) of finite numbers or +inf in several tensors of one dtype."""
    flat = [v.detach().flatten() for v in values]
    if flat[0].dtype in (torch.float16, torch.bfloat16):
        return kth_smallest([v.float() for v in flat], k).to(flat[0].dtype)
    if flat[0].device.type != "cpu":
        return torch.cat(flat).kthvalue(k).values
    total = sum(v.numel() for v in flat)
    found, _ = kth_largest([v.numpy() for v in flat], total - k + 1)
    return torch.from_numpy(np.asarray(found))


def kth_largest(arrays: Sequence[Floats], k: int) -> tuple[np.floating[Any], int]:
    """The k-th largest (1-based) number of flat arrays, and how many numbers are at least as large
    (k without ties).

    A regular sample brackets it; one pass counts what lies above and collects what lies within;
    only that is searched. A bracket that misses costs time, never exactness.
    """
    total = sum(a.size for a in arrays)
    above, inside = 0, arrays[0] if len(arrays) == 1 else None
    if total > 4 * SAMPLE:
        above, inside = _split(arrays, *_bracket(arrays, total, k))
        if not above < k <= above + inside.size:
            above, inside = 0, None
    if inside is None:
        inside = np.concatenate(arrays)
    rank = inside.size - (k - above)
    bound = np.partition(inside, rank)[rank]
    return bound, above + int(np.count_nonzero(inside >= bound))


def _bracket(
    arrays: Sequence[Floats], total: int, k: int
) -> tuple[np.floating[Any], np.floating[Any]]:
    """Two numbers that almost surely enclose the k-th largest."""
    stride = (total // (SAMPLE + total // SHARE)) | 1  # odd: does not lock on to powers of two
    sample = np.concatenate([a[::stride] for a in arrays])
    kept = k / total
    slack = DEVIATIONS * np.sqrt(sample.size * kept * (1.0 - kept)) + 2.0
    middle = sample.size * (1.0 - kept)
    low, high = max(int(middle - slack), 0), min(int(middle + slack), sample.size - 1)
    ordered = np.partition(sample, (low, high))
    return ordered[low], ordered[high]


def _split(
    arrays: Sequence[Floats], low: np.floating[Any], high: np.floating[Any]
) -> tuple[int, Floats]:
    """How many numbers are above `high`, and the numbers in [low, high]."""
    above, inside = 0, []
    for array in arrays:
        for start in range(0, array.size, CHUNK):
            part = array[start : start + CHUNK]
            over = part > high
            above += int(np.count_nonzero(over))
            inside.append(part[(part >= low) ^ over])
    return above, np.concatenate(inside)


def keep_all_but(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks that remove the `count` smallest scores over all tensors together.

    Of equal scores the earlier is removed first (order of `scores`, then position).
    """
    if count == 0:
        return {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
    threshold = kth_smallest(list(scores.values()), count)
    keep = {name: s > threshold for name, s in scores.items()}
    total = sum(s.numel() for s in scores.values())
    surplus = total - sum(int(torch.count_nonzero(m)) for m in keep.values()) - count
    for name in reversed(list(scores)):
        if not surplus:
            break
        tied = (scores[name] == threshold).flatten().nonzero().flatten()
        back = tied[-min(surplus, tied.numel()) :] if tied.numel() else tied
        kept = keep[name].flatten()  # a copy where the memory is not in logical order
        kept[back] = True
        keep[name] = kept.view_as(scores[name])
        surplus -= back.numel()
    return keep
