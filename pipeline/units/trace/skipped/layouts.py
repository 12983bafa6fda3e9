"""How torch lays out a result on the meta device, found without asking it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")


def plain(x: Any) -> bool:
    """Row-major, also where a dimension has one element: torch reads layouts off those strides."""
    if not (isinstance(x, Tensor) and x.is_meta and x.is_contiguous()):
        return False
    step = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != step:
            return False
        step *= size
    return True


def new(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=META)


def same(first: Tensor) -> Tensor:
    if plain(first) or _falling(first):
        return new(first.shape, first)
    if _permuted(first):
        strides = first.stride()
        return torch.empty_strided(first.shape, strides, dtype=first.dtype, device=META)
    return torch.empty_like(first)


def _falling(x: Tensor) -> bool:
    """Row-major but for gaps, without a dimension of one element."""
    strides = x.stride()
    return 1 not in x.shape and all(a > b > 0 for a, b in pairwise(strides))


def _permuted(x: Tensor) -> bool:
    """Row-major in another order of its dimensions, which the strides tell without a doubt."""
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if stride != step or size == 1:
            return False
        step *= size
    return True


def alike(args: tuple[Any, ...]) -> bool:
    first = args[0]
    return all(
        x.shape == first.shape and x.dtype == first.dtype for x in args if isinstance(x, Tensor)
    )


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    lead = len(a) - len(b)
    a, b = (1,) * -lead + tuple(a), (1,) * lead + tuple(b)
    if any(x not in (y, 1) and y != 1 for x, y in zip(a, b, strict=True)):
        return None
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
