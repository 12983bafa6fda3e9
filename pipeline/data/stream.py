"""Batches of a folder of images: worker processes decode, crop and scale to uint8; the rest
(flip, colour, statistics) runs on whole batches on the device, as for images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.augment import Transform, crop_boxes, draw, seeded
from pipeline.data.batches import (
    CPU,
    WHOLE,
    Batch,
    EpochPlan,
    Finish,
    Part,
    Placement,
    check_start,
    share,
    steps,
)
from pipeline.data.config import RandomResizedCrop
from pipeline.data.images import decode
from pipeline.data.splits import FolderSplit

Key = tuple[int, tuple[int, ...]]  # number of the example, and the seed of its crop


def centre_crop(image: Any, size: tuple[int, int]) -> Any:
    """Scale the shorter side of a `PIL.Image` to 8/7 of `size` (256 for 224), cut the centre."""
    from PIL.Image import Resampling

    target = round(max(size) * 8 / 7)
    width, height = image.size
    short = min(width, height)
    width, height = int(target * width / short), int(target * height / short)
    image = image.resize((width, height), Resampling.BILINEAR)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def resized_crop(image: Any, box: Sequence[int], size: tuple[int, int]) -> Any:
    """Cut `box` (top, left, height, width) out of a `PIL.Image` and scale it to `size`."""
    from PIL.Image import Resampling

    top, left, height, width = box
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size[1], size[0]), Resampling.BILINEAR)


class _Decoder(Dataset[tuple[Tensor, int]]):
    """Maps a key to a uint8 [3, H, W] image of the network's size and its label."""

    def __init__(self, split: FolderSplit, transform: Transform, *, training: bool) -> None:
        self._root, self._paths, self._labels = Path(split.root), split.paths, split.labels
        self._size = transform.size
        crops = [op for op in transform.augment if isinstance(op, RandomResizedCrop)]
        self._crop = crops[0] if crops and training else None

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        image = decode(self._root / self._paths[index])
        if self._crop is None:
            image = centre_crop(image, self._size)
        else:
            uniforms = draw(self._crop, 1, seeded(*seed))
            box = crop_boxes(self._crop, uniforms, image.height, image.width)[0].tolist()
            image = resized_crop(image, box, self._size)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels, int(self._labels[index])


Span = tuple[int, int]  # first and end position in the epoch


def _keys(order: Tensor, spans: Iterable[Span], key: tuple[int, ...]) -> Iterator[list[Key]]:
    """Keys of the batches at the positions `spans` of `order`."""
    for first, end in spans:
        yield [(index, (*key, at)) for at, index in enumerate(order[first:end].tolist(), first)]


def _loader(
    decoder: _Decoder, batches: Iterator[list[Key]], placement: Placement
) -> Iterator[Batch]:
    """Decoded batches on the device."""
    device = torch.device(placement.device)
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        decoder,
        batch_sampler=batches,  # type: ignore[arg-type]  # keys are not plain indices
        num_workers=placement.workers,
        pin_memory=device.type == "cuda",
        generator=Generator(),  # otherwise the loader draws from torch's global generator
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class StreamBatches:
    """Training batches of a folder of images, with the interface and guarantees of `TrainBatches`.

    A random resized crop always comes first, because it needs the whole image. Without one, the
    centre is cut as in evaluation.
    """

    def __init__(
        self,
        split: FolderSplit,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        placement: Placement = CPU,
    ) -> None:
        self._decoder = _Decoder(split, transform, training=True)
        self._n, self._batch_size, self._seed = len(split), batch_size, seed
        self._size, self._placement = transform.size, placement
        self._on_device = tuple(
            op for op in transform.augment if not isinstance(op, RandomResizedCrop)
        )
        self._finish = Finish(transform, placement)

    def __len__(self) -> int:
        return steps(self._n, self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        """The `part` of each batch of `epoch`, from `start_step` on.

        Raises:
            ValueError: `start_step` is beyond the epoch.
            DataError: an image cannot be decoded; names it.
        """
        check_start(start_step, len(self))
        device = torch.device(self._placement.device)
        key = (self._seed, epoch)
        plan = EpochPlan(self._n, key, self._on_device, device)
        numbers = range(start_step, len(self))
        return self._batches(
            plan, [share(s, self._batch_size, self._n, part) for s in numbers], key
        )

    def _batches(self, plan: EpochPlan, spans: list[Span], key: tuple[int, ...]) -> Iterator[Batch]:
        filled = [(first, end) for first, end in spans if first < end]
        loader = _loader(self._decoder, _keys(plan.order, filled, key), self._placement)
        for (first, _), (images, labels) in zip(filled, loader, strict=True):
            yield self._finish(plan.augment(images, first, self._size)), labels
        for _ in spans[len(filled) :]:  # the last batch may be too small for all processes
            device = self._placement.device
            nothing = torch.empty(0, 3, *self._size, dtype=torch.uint8, device=device)
            yield self._finish(nothing), torch.empty(0, dtype=torch.int64, device=device)


class StreamEval:
    """Every image of a folder once, in order, cut by `centre_crop`."""

    def __init__(
        self,
        split: FolderSplit,
        transform: Transform,
        *,
        batch_size: int,
        placement: Placement = CPU,
    ) -> None:
        self._decoder = _Decoder(split, transform, training=False)
        self._n, self._batch_size, self._placement = len(split), batch_size, placement
        self._finish = Finish(transform, placement)

    def __len__(self) -> int:
        return steps(self._n, self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        spans = [share(step, self._batch_size, self._n, WHOLE) for step in range(len(self))]
        keys = _keys(torch.arange(self._n), spans, ())
        for images, labels in _loader(self._decoder, keys, self._placement):
            yield self._finish(images), labels
