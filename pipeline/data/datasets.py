"""The registry of data sets: from a name in params.yaml to images, labels and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.data.config import DataConfig
from pipeline.data.files import DataError
from pipeline.data.folders import load_folder, load_tiny_imagenet
from pipeline.data.raw import RawData
from pipeline.data.splits import TensorSplit, stratified
from pipeline.data.vision import load_cifar, load_mnist, load_svhn

DIGITS_TEST_SIZE = 360
DIGITS_TEST_SEED = 0


Loader = Callable[[Path, bool], RawData]


def _load_digits(root: Path, download: bool) -> RawData:
    """scikit-learn's 1,797 digits, 8 x 8, with grey levels 0..16 scaled to 0..255.

    They have no test split. We use 360 of them, stratified by class with seed 0.
    """
    del root, download  # shipped in scikit-learn's wheel
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    full = TensorSplit(images, torch.from_numpy(bunch.target.astype(np.int64)))
    test, train = stratified(full.labels, DIGITS_TEST_SIZE, DIGITS_TEST_SEED)
    names = tuple(str(name) for name in bunch.target_names)
    return RawData(full.take(train), full.take(test), names, {})


DATASETS: Mapping[str, Loader] = {
    "digits": _load_digits,
    "cifar10": partial(load_cifar, "CIFAR10"),
    "cifar100": partial(load_cifar, "CIFAR100"),
    "mnist": partial(load_mnist, "MNIST"),
    "fashion_mnist": partial(load_mnist, "FashionMNIST"),
    "svhn": load_svhn,
    "tiny_imagenet": load_tiny_imagenet,
    "imagefolder": load_folder,
}
"""Each function reads the files below the given root, and downloads them first if asked."""


def load_raw(config: DataConfig) -> RawData:
    """The complete training and test sets, as split by their authors.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is not the official one.
    """
    raw = DATASETS[config.name](Path(config.root or ""), config.download)
    for split, what in ((raw.train, "training"), (raw.test, "test")):
        if len(split) == 0:
            raise DataError(f"{config.name}: no {what} images under {config.root}")
    return raw
