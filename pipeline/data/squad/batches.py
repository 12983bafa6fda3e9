"""Batches of windows: [B, 3, T] int64, token ids, attention mask and token types.

T is the length of the longest window in the batch, rounded up. Shorter windows are padded; encoders
must not attend to padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.augment import seeded
from pipeline.data.batches import CPU, WHOLE, Part, Placement, check_start, share, steps
from pipeline.data.squad.prepared import QuestionSplit

ROUND = 16  # lengths are multiples of this, so that there are few different shapes
MAX_TOKENS = 32_768  # limit for an evaluation batch, whatever its requested number of windows


class _Windows:
    """The windows of a split on the device. Lengths stay on the CPU, so that no batch waits."""

    def __init__(self, split: QuestionSplit, placement: Placement) -> None:
        features, device = split.features, torch.device(placement.device)
        self.length = features["length"].long()
        self.capacity = features["ids"].shape[1]
        names = ("ids", "length", "second", "target")
        self._tensors = {name: features[name].to(device) for name in names}

    def inputs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, 2] of the windows in `chosen`, int64 on the CPU."""
        longest = int(self.length[chosen].max()) if len(chosen) else 1
        width = min(-(-longest // ROUND) * ROUND, self.capacity)
        ids, length, second, target = self._tensors.values()
        rows = chosen.to(ids.device, non_blocking=True)
        place = torch.arange(width, device=ids.device)
        inside = place < length[rows, None]
        types = inside & (place >= second[rows, None])
        stacked = torch.stack([ids[rows, :width].long(), inside.long(), types.long()], dim=1)
        return stacked, target[rows].long()


class QuestionBatches:
    """Training batches: windows in an order that depends only on (seed, epoch)."""

    def __init__(
        self, split: QuestionSplit, *, batch_size: int, seed: int, placement: Placement = CPU
    ) -> None:
        self._windows = _Windows(split, placement)
        self._count, self._batch_size, self._seed = len(split), batch_size, seed

    def __len__(self) -> int:
        return steps(self._count, self._batch_size)

    def epoch(
        self, epoch: int, start_step: int = 0, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The `part` of each batch of `epoch`, from `start_step` on.

        Raises:
            ValueError: `start_step` is beyond the epoch.
        """
        check_start(start_step, len(self))
        order = torch.randperm(self._count, generator=seeded(self._seed, epoch))
        for step in range(start_step, len(self)):
            first, end = share(step, self._batch_size, self._count, part)
            yield self._windows.inputs(order[first:end])


@dataclass(frozen=True)
class Asked:
    """The targets of an evaluation batch: positions of the answers, and the windows they are for.

    Attributes:
        target: [B, 2] as for training.
        rows: row numbers of the windows in `split`.
    """

    target: Tensor
    rows: range
    split: QuestionSplit

    def __len__(self) -> int:
        return len(self.rows)


class QuestionEval:
    """Every window of a split once, in order."""

    def __init__(
        self, split: QuestionSplit, *, batch_size: int, placement: Placement = CPU
    ) -> None:
        self._split, self._windows = split, _Windows(split, placement)
        self._batch_size = max(1, min(batch_size, MAX_TOKENS // self._windows.capacity))

    def __len__(self) -> int:
        return steps(len(self._split), self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Asked]]:
        for step in range(len(self)):
            first, end = share(step, self._batch_size, len(self._split), WHOLE)
            inputs, target = self._windows.inputs(torch.arange(first, end))
            yield inputs, Asked(target, range(first, end), self._split)
