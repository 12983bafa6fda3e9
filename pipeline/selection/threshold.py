"""The exact k-th smallest of many numbers, by bracketing instead of sorting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 17
SAMPLE = 1 << 14
CHUNK = 1 << 18
MARGINS = (4.0, 40.0)
"""Half-widths of the bracket, in standard deviations of a sample quantile."""


def kth_smallest(values: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest (1-based) of finite numbers or +inf in several tensors of one dtype.

    A regular sample brackets it; one pass counts what lies below and collects what lies within;
    only that is ranked. A bracket that misses is widened, so the result is exact on any data.
    """
    flat = [v.detach().flatten() for v in values]
    if flat[0].dtype in (torch.float16, torch.bfloat16):
        return kth_smallest([v.float() for v in flat], k).to(flat[0].dtype)
    total = sum(v.numel() for v in flat)
    if total > SMALL:
        sample = _sample(flat, total)
        for margin in MARGINS:
            low, high = _bracket(sample, k / total, margin)
            below, inside = _split(flat, low, high)
            if below < k <= below + inside.numel():
                return inside.kthvalue(k - below).values
    return torch.cat(flat).kthvalue(k).values


def _sample(flat: Sequence[Tensor], total: int) -> Tensor:
    step = max(1, total // SAMPLE)
    return torch.cat([v[step // 2 :: step] for v in flat]).sort().values


def _bracket(sample: Tensor, quantile: float, margin: float) -> tuple[float, float]:
    n = sample.numel()
    width = margin * math.sqrt(n * quantile * (1.0 - quantile)) + margin
    low, high = math.floor(quantile * n - width), math.ceil(quantile * n + width)
    return (
        float(sample[low]) if low >= 0 else -math.inf,
        float(sample[high]) if high < n else math.inf,
    )


def _split(flat: Sequence[Tensor], low: float, high: float) -> tuple[int, Tensor]:
    """How many numbers lie below the bracket, and those within it."""
    if flat[0].device.type != "cpu":
        below = sum(int((v < low).sum()) for v in flat)
        return below, torch.cat([v[(v >= low) & (v <= high)] for v in flat])
    below, inside = 0, []
    for tensor in flat:
        # numpy counts and compresses bools several times faster; a chunk stays in the cache.
        array = tensor.numpy()
        for start in range(0, array.size, CHUNK):
            chunk = array[start : start + CHUNK]
            outside = chunk < low
            below += int(np.count_nonzero(outside))
            outside |= chunk > high
            inside.append(chunk[~outside])
    return below, torch.from_numpy(np.concatenate(inside))


def keep_all_but(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks without the `count` smallest scores over all tensors together.

    Of equal scores the earlier goes first (order of `scores`, then position in the tensor).
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
