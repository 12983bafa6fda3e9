"""Images per second of one core: our training batches against torchvision's usual way.

    python -m benchmarks.data_path [--images 12800] [--batch-size 128] [--repeats 5]

CIFAR-shaped random images, pad 4 + crop + flip + normalise, float32 batches of 128. Both sides run
in this process on one thread. Times are CPU time of this thread, which other load hardly affects;
variants are interleaved, and the median of the repeats is shown. Compare ratios.

Measured 2026-11 on a shared 2-core AMD EPYC, torch 2.15 (images/s, ratio to torchvision):
torchvision 6,100 (1.0x); ours 141,000 (23x), channels_last 101,000 (16x); gather and convert
only 1,150,000. In a training process with nothing else in its caches: 170,000 and 139,000.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import click
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.augment import Transform
from pipeline.data.batches import Placement
from pipeline.data.config import DataConfig, Statistics
from pipeline.data.loaders import TrainBatches
from pipeline.data.splits import TensorSplit

Epoch = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class PilImages(Dataset[tuple[Tensor, int]]):
    """uint8 [N, H, W, C] in memory, through PIL to `steps`: how torchvision's CIFAR10 works."""

    def __init__(
        self, pixels: np.ndarray, labels: Tensor, steps: Callable[[object], Tensor]
    ) -> None:
        self._pixels, self._labels, self._steps = pixels, labels, steps

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self._steps(Image.fromarray(self._pixels[index])), int(self._labels[index])


def _torchvision(split: TensorSplit, transform: Transform, batch_size: int) -> Epoch:
    """Dataset + Compose + DataLoader, as in tutorials."""
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.RandomCrop(transform.size[0], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(transform.mean, transform.std),
        ]
    )
    pixels = np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy())

    loader = DataLoader(PilImages(pixels, split.labels, steps), batch_size=batch_size, shuffle=True)
    return lambda: loader


def _ours(split: TensorSplit, transform: Transform, batch_size: int, placement: Placement) -> Epoch:
    source = TrainBatches(split, transform, batch_size=batch_size, seed=0, placement=placement)
    return lambda: source.epoch(0)


def _copy(split: TensorSplit, batch_size: int) -> Epoch:
    """The lower bound of the time: gather a batch and convert it to float."""
    order = torch.randperm(len(split))

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        for chosen in torch.split(order, batch_size):
            yield split.images.index_select(0, chosen).float(), split.labels[chosen]

    return epoch


def _rate(epoch: Epoch) -> float:
    start = time.thread_time()
    count = sum(len(labels) for _, labels in epoch())
    return count / (time.thread_time() - start)


@click.command()
@click.option("--images", default=12800, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(images: int, batch_size: int, repeats: int) -> None:
    """Print one line per variant."""
    torch.set_num_threads(1)
    config = DataConfig(name="cifar10")
    assert isinstance(config.normalise, Statistics)
    transform = Transform(config.augment, (32, 32), config.normalise.mean, config.normalise.std)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    split = TensorSplit(pixels, torch.randint(0, 10, (images,)))
    variants = {
        "torchvision Compose + DataLoader": _torchvision(split, transform, batch_size),
        "ours": _ours(split, transform, batch_size, Placement()),
        "ours, channels_last": _ours(split, transform, batch_size, Placement(channels_last=True)),
        "limit: gather and convert only": _copy(split, batch_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, epoch in variants.items():
            rates[name].append(_rate(epoch))
    base = statistics.median(rates["torchvision Compose + DataLoader"])
    for name, values in rates.items():
        rate = statistics.median(values)
        click.echo(f"{name:34}{rate:12,.0f} images/s {rate / base:8.1f}x")


if __name__ == "__main__":
    main()
