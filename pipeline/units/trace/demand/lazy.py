"""What is computed only when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Lazy:
    """A result that is made when it is asked for, after those it needs."""

    __slots__ = ("_make", "_needs", "result")

    def __init__(self, needs: Sequence[Lazy], make: Callable[[], Any]) -> None:
        self._needs = needs
        self._make: Callable[[], Any] | None = make
        self.result: Any = None

    @property
    def made(self) -> bool:
        return self._make is None

    def get(self) -> Any:
        waiting = [self]
        while waiting:  # no recursion: a loop may write one tensor a thousand times
            one = waiting[-1]
            missing = [n for n in one._needs if n._make is not None] if one._make else []
            if missing:
                waiting += missing
                continue
            if one._make is not None:
                one.result, one._make, one._needs = one._make(), None, ()
            waiting.pop()
        return self.result


@dataclass(eq=False, slots=True)
class Seen:
    """A tensor as it was when an operator read it: what was in its storage then."""

    storage: Lazy
    tensor: Tensor

    def value(self) -> Tensor:
        """Not to be written to."""
        return self.within(self.storage.get())

    def within(self, numbers: Tensor) -> Tensor:
        """It lies in these numbers."""
        x = self.tensor
        if numbers.dtype != x.dtype:
            numbers = numbers.view(x.dtype)
        found = numbers.as_strided(x.shape, x.stride(), x.storage_offset())
        return found.conj() if x.is_conj() else found


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        plain = not any(isinstance(x, (Tensor, list, tuple, dict)) for x in tree)
        return tree if plain else type(tree)([mapped(x, change) for x in tree])
    return {k: mapped(x, change) for k, x in tree.items()} if isinstance(tree, Mapping) else tree


def now(tree: Any) -> Any:
    if isinstance(tree, Seen):
        return tree.value()
    if isinstance(tree, (list, tuple)):
        return type(tree)([now(x) for x in tree])
    return {k: now(x) for k, x in tree.items()} if isinstance(tree, Mapping) else tree


def numel(x: Tensor) -> int:
    return x.untyped_storage().nbytes() // x.element_size()


def laid(value: Tensor, x: Tensor) -> Tensor:
    """The storage of `x` with these values in the places where `x` has them."""
    if value.shape != x.shape or value.dtype != x.dtype:
        raise NotImplementedError("the meta device foresaw another result")
    plain = value.is_contiguous() and x.is_contiguous() and value.numel() == numel(x)
    if plain and not value.is_conj():
        return value.detach().reshape(-1)
    numbers = torch.zeros(numel(x), dtype=x.dtype)
    numbers.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(value)
    return numbers


def noise(count: int, dtype: torch.dtype) -> Tensor:
    """The same every time."""
    block = torch.randn(min(count, 65_521), generator=torch.Generator().manual_seed(0))
    return block.repeat(math.ceil(count / max(1, len(block))))[:count].to(dtype)
