"""Batches for training and evaluation: the whole split on the device, or streamed from files.

A training batch depends only on (seed, epoch, step), not on torch's global generator, the device or
earlier batches. So a run resumed at any step gets the same batches as an uninterrupted one, and the
parts of several processes together are the batch of a single process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.augment import Transform
from pipeline.data.batches import (
    CPU,
    WHOLE,
    Batch,
    EpochPlan,
    EvalSource,
    Finish,
    Part,
    Placement,
    TrainSource,
    check_start,
    share,
    steps,
)
from pipeline.data.config import RandomResizedCrop
from pipeline.data.prepare import resized
from pipeline.data.prepared import AnySplit, Prepared
from pipeline.data.splits import FolderSplit, TensorSplit
from pipeline.data.squad.batches import QuestionBatches, QuestionEval
from pipeline.data.squad.prepared import QuestionSplit
from pipeline.data.stream import StreamBatches, StreamEval


class TrainBatches:
    """Augmented training batches of a split that is on the device as one uint8 tensor."""

    def __init__(
        self,
        split: TensorSplit,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        placement: Placement = CPU,
    ) -> None:
        self._device = torch.device(placement.device)
        scales = any(isinstance(op, RandomResizedCrop) for op in transform.augment)
        images = split.images if scales else resized(split.images, transform.size)
        self._images = images.to(self._device)
        self._labels = split.labels.to(self._device)
        self._batch_size, self._seed, self._transform = batch_size, seed, transform
        self._finish = Finish(transform, placement)

    def __len__(self) -> int:
        return steps(len(self._labels), self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        """The `part` of each batch of `epoch`, from `start_step` on.

        Raises:
            ValueError: `start_step` is beyond the epoch.
        """
        check_start(start_step, len(self))
        key = (self._seed, epoch)
        plan = EpochPlan(len(self._labels), key, self._transform.augment, self._device)
        order = plan.order.to(self._device, non_blocking=True)
        return (self._batch(plan, order, step, part) for step in range(start_step, len(self)))

    def _batch(self, plan: EpochPlan, order: Tensor, step: int, part: Part) -> Batch:
        first, end = share(step, self._batch_size, len(order), part)
        chosen = order[first:end]
        images = self._images.index_select(0, chosen)
        if len(chosen):
            images = plan.augment(images, first, self._transform.size)
        return self._finish(images), self._labels.index_select(0, chosen)


class EvalBatches:
    """Every example of a split once, in order, scaled to the network's size if necessary."""

    def __init__(
        self,
        split: TensorSplit,
        transform: Transform,
        *,
        batch_size: int,
        placement: Placement = CPU,
    ) -> None:
        images = resized(split.images, transform.size)
        self._images, self._labels = (t.to(placement.device) for t in (images, split.labels))
        self._batch_size = batch_size
        self._finish = Finish(transform, placement)

    def __len__(self) -> int:
        return steps(len(self._labels), self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        chunks = zip(
            torch.split(self._images, self._batch_size),
            torch.split(self._labels, self._batch_size),
            strict=True,
        )
        return ((self._finish(images), labels) for images, labels in chunks)


def make_train_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    seed: int,
    placement: Placement = CPU,
    augmented: bool = True,
) -> TrainSource:
    """Batches of the training split: in memory, or streamed for a folder of images.

    `augmented=False` gives the shuffled order without augmentation.
    """
    split = prepared.train()
    if isinstance(split, QuestionSplit):
        return QuestionBatches(split, batch_size=batch_size, seed=seed, placement=placement)
    transform = prepared.transform if augmented else replace(prepared.transform, augment=())
    if isinstance(split, FolderSplit):
        return StreamBatches(
            split, transform, batch_size=batch_size, seed=seed, placement=placement
        )
    return TrainBatches(split, transform, batch_size=batch_size, seed=seed, placement=placement)


def make_eval_batches(
    prepared: Prepared, split: AnySplit, *, batch_size: int, placement: Placement = CPU
) -> EvalSource:
    """Batches of a split of `prepared`, in order and without augmentation."""
    if isinstance(split, QuestionSplit):
        return QuestionEval(split, batch_size=batch_size, placement=placement)
    transform = prepared.transform
    if isinstance(split, FolderSplit):
        return StreamEval(split, transform, batch_size=batch_size, placement=placement)
    return EvalBatches(split, transform, batch_size=batch_size, placement=placement)
