"""Common parts of all loaders: placement of batches, the plan of an epoch, the interfaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.augment import Transform, apply, draw, normalise, seeded
from pipeline.data.config import Augmentation
from pipeline.data.images import usable_cores

Batch = tuple[Tensor, Tensor]


def _decoders() -> int:
    """One decoding process per usable core, at most eight. The training processes of this machine
    share the cores."""
    return min(8, max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class Placement:
    """Device and format of batches.

    `workers`: decoding processes of a streamed split; 0 = decode in this process. Their number does
    not change the batches.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    workers: int = field(default_factory=_decoders)


CPU = Placement()


@dataclass(frozen=True)
class Part:
    """This process's share of every batch."""

    rank: int = 0
    ranks: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """First and end position of this share in a batch of `count` examples.

        Shares are in order of rank, differ by at most one, and have at least two examples, which
        BatchNorm needs. Of a small last batch, the last ranks get nothing.
        """
        shares = max(1, min(self.ranks, count // 2))
        first, end = (count * min(r, shares) // shares for r in (self.rank, self.rank + 1))
        return first, end


WHOLE = Part()


class TrainSource(Protocol):
    """Training batches. `len` is the number of steps per epoch; the last batch may be small."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Batch]: ...


class EvalSource(Protocol):
    """Evaluation batches: every example once, in order, without augmentation."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Finish:
    """The last step of every batch: statistics, dtype, memory format."""

    def __init__(self, transform: Transform, placement: Placement) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=placement.device).view(1, -1, 1, 1)
            for values in (transform.mean, transform.std)
        )
        self._placement = placement

    def __call__(self, images: Tensor) -> Tensor:
        x = normalise(images, self._mean, self._std)
        last = self._placement.channels_last
        form = torch.channels_last if last else torch.contiguous_format
        return x.to(dtype=self._placement.dtype, memory_format=form)


class EpochPlan:
    """Order and random numbers of one epoch.

    Attributes:
        order: the example at each position of the epoch, on the CPU.
    """

    def __init__(
        self, n: int, key: tuple[int, int], augment: tuple[Augmentation, ...], device: torch.device
    ) -> None:
        generator = seeded(*key)
        self.order = torch.randperm(n, generator=generator)
        self._augment = augment
        self._drawn = [draw(op, n, generator).to(device, non_blocking=True) for op in augment]

    def augment(self, images: Tensor, first: int, size: tuple[int, int]) -> Tensor:
        """The images at positions `first`, `first + 1`, ... augmented."""
        for op, drawn in zip(self._augment, self._drawn, strict=True):
            images = apply(op, images, drawn[first : first + len(images)], size)
        return images


def steps(n: int, batch_size: int) -> int:
    """Number of batches in a pass over `n` examples. The last one may be small."""
    return -(-n // batch_size)


def share(step: int, batch_size: int, n: int, part: Part) -> tuple[int, int]:
    """First and end position, within the epoch, of a part of the batch at `step`."""
    first = step * batch_size
    begin, end = part.of(min(batch_size, n - first))
    return first + begin, first + end


def check_start(start_step: int, length: int) -> None:
    """Raise ValueError unless an epoch of `length` steps can begin at `start_step`."""
    if not 0 <= start_step <= length:
        raise ValueError(f"start_step {start_step} outside an epoch of {length} steps")
