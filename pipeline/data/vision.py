"""Data sets that torchvision downloads and reads, with errors that say what to do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch

from pipeline.data.files import DataError, md5
from pipeline.data.raw import RawData
from pipeline.data.splits import TensorSplit

UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    IndexError,
    KeyError,
    EOFError,
    OSError,
    NotImplementedError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Source:
    """An official file: path relative to the root, official md5 (None = not published), URL."""

    path: str
    md5: str | None
    url: str


def check_md5(root: Path, source: Source) -> bool:
    """Whether the file exists.

    Raises:
        DataError: it exists and is not the official one.
    """
    path = root / source.path
    if not path.is_file():
        return False
    if source.md5 is not None and (found := md5(path)) != source.md5:
        raise DataError(
            f"{path}: md5 is {found}, the official file's is {source.md5}: damaged or another "
            f"file. Delete it and run again, or fetch it from {source.url}"
        )
    return True


def missing_error(root: Path, source: Source, reason: str) -> DataError:
    """The error for a file that is missing and cannot be downloaded."""
    return DataError(
        f"{root / source.path} is missing and was not downloaded ({reason}). "
        f"Fetch {source.url} into that folder, or set data.root to the folder that has it"
    )


def fetch(root: Path, needed: Sequence[Source], download: bool, get: Callable[[], object]) -> None:
    """Run `get` if a `needed` file is missing.

    Raises:
        DataError: a file is wrong, or still missing.
    """
    missing = [s for s in needed if not check_md5(root, s)]
    if not missing:
        return
    if not download:
        raise missing_error(root, missing[0], "data.download is false")
    try:
        get()
    except (RuntimeError, URLError, OSError, EOFError) as error:
        raise missing_error(root, missing[0], f"{type(error).__name__}: {error}") from error


def read(get: Callable[[], Any], root: Path, files: Sequence[Source]) -> Any:
    """The result of `get`, a reader of `files`.

    Raises:
        DataError: the reader cannot interpret the content.
    """
    try:
        return get()
    except UNREADABLE as error:
        names = ", ".join(str(root / s.path) for s in files)
        raise DataError(
            f"cannot read {names}: {type(error).__name__}: {error}. Delete them and run again"
        ) from error


def sources_md5(root: Path, files: Sequence[Source]) -> dict[str, str]:
    """md5 of each file, for the card."""
    return {s.path: md5(root / s.path) for s in files}


def _split(images: np.ndarray[Any, Any], labels: Any) -> TensorSplit:
    """A split of uint8 [N, C, H, W] images and labels; both own their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return TensorSplit(tensor, torch.as_tensor(np.asarray(labels, dtype=np.int64)))


def load_cifar(class_name: str, root: Path, download: bool) -> RawData:
    """CIFAR-10 or CIFAR-100 from its pickles, which are opened only if their md5 is correct."""
    from torchvision import datasets

    reader = getattr(datasets, class_name)
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = [Source(f"{reader.base_folder}/{name}", md5, reader.url) for name, md5 in listed]
    fetch(root, files, download, partial(reader, root, download=True))
    sets = [read(partial(reader, root, train=train), root, files) for train in (True, False)]
    train, test = (_split(s.data.transpose(0, 3, 1, 2), s.targets) for s in sets)
    return RawData(train, test, tuple(sets[0].classes), sources_md5(root, files))


def load_mnist(class_name: str, root: Path, download: bool) -> RawData:
    """MNIST or Fashion-MNIST from idx files. Compressed ones are checked and unpacked."""
    from torchvision import datasets

    reader = getattr(datasets, class_name)
    folder, url = f"{class_name}/raw", reader.mirrors[0]
    packed = [Source(f"{folder}/{name}", md5, url + name) for name, md5 in reader.resources]
    files = [Source(s.path.removesuffix(".gz"), None, s.url) for s in packed]
    for archive, file in zip(packed, files, strict=True):
        if not (root / file.path).is_file():
            check_md5(root, archive)
    fetch(root, files, download, partial(reader, root, download=True))
    sets = [read(partial(reader, root, train=train), root, files) for train in (True, False)]
    for one, pair in zip(sets, (files[:2], files[2:]), strict=True):
        if len(one.data) != len(one.targets):
            names = " and ".join(str(root / s.path) for s in pair)
            raise DataError(f"{names}: {len(one.data)} images but {len(one.targets)} labels")
    train, test = (_split(s.data.numpy()[:, None], s.targets) for s in sets)
    return RawData(train, test, tuple(reader.classes), sources_md5(root, files))


def load_svhn(root: Path, download: bool) -> RawData:
    """SVHN's cropped digits, splits train and test ("extra" is not used)."""
    from torchvision.datasets import SVHN

    splits = ("train", "test")
    files = [Source(name, md5, url) for url, name, md5 in (SVHN.split_list[s] for s in splits)]
    fetch(root, files, download, lambda: [SVHN(root, split=s, download=True) for s in splits])
    sets = [read(partial(SVHN, root, split=split), root, files) for split in splits]
    train, test = (_split(s.data, s.labels) for s in sets)
    return RawData(train, test, tuple(str(digit) for digit in range(10)), sources_md5(root, files))
