"""Data sets that are folders of image files: Tiny ImageNet and any ImageNet-like layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.files import DataError
from pipeline.data.raw import RawData
from pipeline.data.splits import FolderSplit, TensorSplit
from pipeline.data.vision import Source, check_md5, fetch, missing_error

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
TINY_FOLDER = "tiny-imagenet-200"
TINY_ARCHIVE = Source(
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)


def decode(path: Path) -> Any:
    """The file as an RGB `PIL.Image`.

    Raises:
        DataError: not an image, or a truncated one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); restore or remove it") from error


def _image_files(folder: Path) -> list[Path]:
    found = (
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )
    return sorted(found)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing: expected one folder of images per class in it; set data.root to "
            "the folder that has train/ and val/"
        )
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def index_folder(root: Path, part: str, classes: Sequence[str]) -> FolderSplit:
    """Index `root/part/<class>/**`, sorted by class and then by path; labels follow `classes`.

    Raises:
        DataError: the folder is missing, has a class not in `classes`, or a class has no image.
    """
    paths: list[str] = []
    labels: list[int] = []
    for name in _class_folders(root / part):
        if name not in classes:
            raise DataError(f"{root / part / name}: no such class in {root / 'train'}")
        files = _image_files(root / part / name)
        if not files:
            raise DataError(f"{root / part / name} has no image ({', '.join(EXTENSIONS)})")
        paths += [file.relative_to(root).as_posix() for file in files]
        labels += [classes.index(name)] * len(files)
    return FolderSplit(str(root), tuple(paths), torch.tensor(labels, dtype=torch.int64))


def load_folder(root: Path, download: bool) -> RawData:
    """Index `root/train/<class>/` and `root/val/<class>/`; val/ is the test split."""
    del download  # a user's own folder
    classes = tuple(_class_folders(root / "train"))
    train, test = (index_folder(root, part, classes) for part in ("train", "val"))
    return RawData(train, test, classes, {})


def _annotated(base: Path, classes: Sequence[str]) -> FolderSplit:
    """Tiny ImageNet's flat val/images by the class column of val_annotations.txt."""
    table = base / "val" / "val_annotations.txt"
    found: list[tuple[str, int]] = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("\t")
        name, label = (*columns, "", "")[:2]
        if label not in classes or not name or Path(name).name != name:
            raise DataError(
                f"{table}, line {number}: expected '<file>\\t<class of train/>...', got {line!r}"
            )
        found.append((f"val/images/{name}", classes.index(label)))
    found.sort()
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return FolderSplit(str(base), tuple(path for path, _ in found), labels)


def _decoded(split: FolderSplit) -> TensorSplit:
    """All images of an index in memory.

    Raises:
        DataError: an image has another size than the first.
    """
    if not split.paths:
        return TensorSplit(torch.empty(0, 3, 1, 1, dtype=torch.uint8), split.labels)
    root = Path(split.root)
    first = np.asarray(decode(root / split.paths[0]))
    images = np.empty((len(split), *first.shape), dtype=np.uint8)
    for row, path in enumerate(split.paths):
        pixels = np.asarray(decode(root / path))
        if pixels.shape != first.shape:
            raise DataError(f"{root / path}: shape {pixels.shape}, others {first.shape}")
        images[row] = pixels
    return TensorSplit(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), split.labels)


def load_tiny_imagenet(root: Path, download: bool) -> RawData:
    """Tiny ImageNet's 200 classes at 64 x 64; its val/ is the test split, test/ has no labels.

    The stock archive's flat val/ and one already sorted into class folders are both read; no file
    is moved.
    """
    base = root / TINY_FOLDER
    if not base.is_dir():
        fetch(root, [TINY_ARCHIVE], download, lambda: _download(root))
        _unpack(root)
    classes = tuple(_class_folders(base / "train"))
    train = index_folder(base, "train", classes)
    flat = (base / "val" / "val_annotations.txt").is_file()
    test = _annotated(base, classes) if flat else index_folder(base, "val", classes)
    return RawData(_decoded(train), _decoded(test), classes, _archive_md5(root))


def _download(root: Path) -> None:
    from torchvision.datasets.utils import download_url

    download_url(TINY_ARCHIVE.url, root, TINY_ARCHIVE.path, TINY_ARCHIVE.md5)


def _unpack(root: Path) -> None:
    """Unpack beside, then rename: half an archive must not pass for the data set."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as partial:
        extract_archive(root / TINY_ARCHIVE.path, partial)
        if not (Path(partial) / TINY_FOLDER).is_dir():
            raise missing_error(root, TINY_ARCHIVE, f"the archive has no {TINY_FOLDER}/")
        os.replace(Path(partial) / TINY_FOLDER, root / TINY_FOLDER)


def _archive_md5(root: Path) -> dict[str, str]:
    """The archive's md5 if it is there; the unpacked 110,000 files have no official ones."""
    if TINY_ARCHIVE.md5 and check_md5(root, TINY_ARCHIVE):
        return {TINY_ARCHIVE.path: TINY_ARCHIVE.md5}
    return {}
