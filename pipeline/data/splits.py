"""Splits of a data set, in memory or as an index of files, and stratified draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.files import DataError


@dataclass(frozen=True)
class TensorSplit:
    """Images in memory: `images` uint8 [N, C, H, W], `labels` int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> TensorSplit:
        """The examples at `indices`, in that order."""
        return TensorSplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FolderSplit:
    """Images as files: `paths` are relative to `root`, '/'-separated; `labels` int64 [N]."""

    root: str
    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor) -> FolderSplit:
        """The examples at `indices`, in that order."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return FolderSplit(self.root, paths, self.labels[indices])


Split = TensorSplit | FolderSplit


def class_counts(labels: Tensor, num_classes: int) -> list[int]:
    """Number of examples of each class."""
    return torch.bincount(labels, minlength=num_classes).tolist()


def _quotas(counts: Sequence[int], size: int) -> list[int]:
    """Distribute `size` in proportion to `counts` by largest remainder; ties go to the first."""
    total = sum(counts)
    quotas = [size * c // total for c in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(size * counts[i] % total), i))
    for i in by_remainder[: size - sum(quotas)]:
        quotas[i] += 1
    return quotas


def stratified(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose `size` examples, stratified by class. Returns (chosen, rest), both ascending.

    Uses numpy's legacy RandomState, whose stream will not change in future versions, so the split
    of a published table can be drawn again.

    Raises:
        DataError: there are fewer than `size` examples.
    """
    if not 0 <= size <= len(labels):
        raise DataError(f"cannot take {size} of {len(labels)} examples")
    values = labels.numpy()
    chosen = np.zeros(len(values), dtype=bool)
    random = np.random.RandomState(seed)  # noqa: NPY002
    classes, counts = np.unique(values, return_counts=True)
    for label, quota in zip(classes, _quotas(counts.tolist(), size), strict=True):
        chosen[random.permutation(np.flatnonzero(values == label))[:quota]] = True
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))
