"""The pruning plan: what is kept, one bool per unit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from pipeline.units.groups import Granularity


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """A named set of masks; True = kept.

    Attributes:
        granularity: UNSTRUCTURED: keys are weight names, masks have the weight's shape.
            STRUCTURED: keys are channel group names, masks have shape (size,).
        keep: the masks. Names that are absent are kept whole.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: a structured mask is not one-dimensional.
    """

    granularity: Granularity
    keep: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.keep.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"plan: mask of {name!r} is {mask.dtype}, not bool")
            if self.granularity is Granularity.STRUCTURED and mask.ndim != 1:
                raise ValueError(f"plan: mask of group {name!r} has shape {tuple(mask.shape)}")
        frozen = {k: v.detach().cpu().contiguous() for k, v in self.keep.items()}
        object.__setattr__(self, "keep", MappingProxyType(frozen))

    @property
    def total(self) -> int:
        """Number of units the plan speaks of."""
        return sum(m.numel() for m in self.keep.values())

    @property
    def kept(self) -> int:
        """Number of units kept."""
        return sum(int(m.sum()) for m in self.keep.values())

    @property
    def sparsity(self) -> float:
        """Fraction of units removed; 0 for an empty plan."""
        return 1.0 - self.kept / self.total if self.total else 0.0

    @property
    def density(self) -> float:
        """Fraction of units kept."""
        return 1.0 - self.sparsity

    def digest(self) -> str:
        """SHA-256 over granularity, names, shapes and mask bits: what a record cites."""
        h = hashlib.sha256(self.granularity.value.encode())
        for name in sorted(self.keep):
            mask = self.keep[name]
            h.update(f"\0{name}\0{tuple(mask.shape)}\0".encode())
            h.update(mask.to(torch.uint8).numpy().tobytes())
        return h.hexdigest()
