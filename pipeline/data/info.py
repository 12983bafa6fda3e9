"""What a model needs to know of a data set: shapes, classes, statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a prepared data set; everything a model builder may depend on.

    Attributes:
        name: registry name, e.g. "cifar10".
        input_shape: of one example as the network sees it: (channels, height, width) of an image,
            (3, length) of a window of text (token ids, mask, types).
        num_classes: number of labels.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
