"""A generated folder in ImageNet's layout: few classes, few real JPEGs of very different shapes,
and the oddities of the original (a grey and a CMYK JPEG, a PNG that is called .JPEG).

By hand: `python -m tests.imagenet_world data/imagenet --classes 12 --train 4 --val 1`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

SIZES = ((500, 375), (333, 500), (128, 96), (40, 300), (256, 256), (640, 71))
ODDITIES = (("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"))
"""Mode and real format of the first images of every part."""


def write_imagenet(root: Path, classes: int = 12, train: int = 4, val: int = 1) -> Path:
    """`root/train/<wnid>/*.JPEG` and `root/val/<wnid>/*.JPEG`; the same bytes every time."""
    for part, count in (("train", train), ("val", val)):
        for number in range(classes * count):
            label, i = divmod(number, count)
            wnid = f"n{1440764 + 7 * label:08d}"
            (root / part / wnid).mkdir(parents=True, exist_ok=True)
            mode, form = ODDITIES[number] if number < len(ODDITIES) else ("RGB", "JPEG")
            picture = _picture((part == "val", label, i)).convert(mode)
            picture.save(root / part / wnid / f"{wnid}_{i}.JPEG", form)
    return root


def _picture(key: tuple[int, ...]) -> Any:
    """Clouds of colour, brighter from class to class."""
    from PIL import Image

    _, label, i = key
    noise = np.random.default_rng(key).integers(0, 160, (5, 5, 3)) + 24 * (label % 4)
    small = Image.fromarray(noise.astype(np.uint8))
    return small.resize(SIZES[(label + i) % len(SIZES)], Image.Resampling.BICUBIC)


@click.command(help=__doc__)
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--classes", default=12, show_default=True)
@click.option("--train", default=4, show_default=True, help="images per class")
@click.option("--val", default=1, show_default=True, help="images per class")
def main(root: Path, classes: int, train: int, val: int) -> None:
    write_imagenet(root, classes, train, val)


if __name__ == "__main__":
    main()
