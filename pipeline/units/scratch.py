"""Scratch memory that is reused between steps.

On a CPU, a temporary as large as a big weight is allocated and freed in every step, and its page
faults cost more than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**19
"""Elements per piece where several passes read the same memory: small enough that a few pieces stay
in the CPU's caches, large enough that call overhead does not matter."""


class Scratch:
    """One shared buffer per dtype and device, grown to the largest request."""

    def __init__(self) -> None:
        self._flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """Uninitialised, with shape, dtype and layout of `x`; valid until the next call."""
        key, count = (x.dtype, x.device), x.numel()
        flat = self._flat.get(key)
        if flat is None or flat.numel() < count:
            flat = self._flat[key] = torch.empty(count, dtype=x.dtype, device=x.device)
        if x.is_contiguous():
            return flat[:count].view(x.shape)
        return flat.as_strided(x.shape, torch.empty_like(x, device="meta").stride())


class KeyedScratch:
    """One buffer per key on the CPU. Elsewhere torch's caching allocator already reuses memory."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def like(self, key: int, x: Tensor) -> Tensor:
        """A tensor with the shape, dtype and layout of `x`: zeros at first, later its last content.
        Valid until the next call with this key."""
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
