"""The facts about a data set that a model builder may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a prepared data set; a model builder may depend on nothing else.

    Attributes:
        name: registry name, e.g. "cifar10".
        input_shape: shape of one example as the network sees it: (channels, height, width) of an
            image, (3, length) of a window of text (token ids, mask, types).
        num_classes: number of labels.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
