"""Memory that is kept between steps: on a CPU fresh memory costs more than the arithmetic.

A step that makes a temporary the size of a large weight gets its pages from the system and hands
them back, every time; the page faults take longer than the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**19
"""Numbers per piece where several passes go over the same memory: a few such pieces stay in the
caches of a CPU, and work on each outweighs the calls."""


class Scratch:
    """One buffer per dtype and device, as large as the largest tensor asked for."""

    def __init__(self) -> None:
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """Uninitialised, with shape, dtype and layout of `x`; the loan ends with the next call."""
        key, count = (x.dtype, x.device), x.numel()
        flat = self._flat.get(key)
        if flat is None or flat.numel() < count:
            flat = self._flat[key] = torch.empty(count, dtype=x.dtype, device=x.device)
        if x.is_contiguous():
            return flat[:count].view(x.shape)
        return flat.as_strided(x.shape, torch.empty_like(x, device="meta").stride())


class Kept:
    """One tensor per key, on a CPU; on other devices torch's own allocator keeps memory."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def like(self, key: int, x: Tensor) -> Tensor:
        """With shape, dtype and layout of `x`; holds 0 or what it held last. The loan ends with the
        next of this key."""
        if x.device.type != "cpu":
            return torch.empty_like(x)
        held = self._held.get(key)
        if held is None or (held.shape, held.stride(), held.dtype) != (
            x.shape,
            x.stride(),
            x.dtype,
        ):
            held = self._held[key] = torch.zeros_like(x)
        return held
