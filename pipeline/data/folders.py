"""Data sets that are folders of image files: Tiny ImageNet and any ImageNet-like layout."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.files import DataError
from pipeline.data.images import EXTENSIONS, decode, in_parallel, refuse
from pipeline.data.raw import RawData
from pipeline.data.splits import FolderSplit, TensorSplit
from pipeline.data.vision import Source, check_md5, fetch, missing_error

log = logging.getLogger("espalier")
PARTS = ("train", "val")
DOT = "names that begin with a dot"
TINY_FOLDER = "tiny-imagenet-200"
TINY_ARCHIVE = Source(
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)


def _hidden(name: str) -> bool:
    """Whether a name begins with a dot and is not data: .ipynb_checkpoints/, macOS's ._copy.png."""
    return name.startswith(".")


def _image_files(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Image files below a folder, sorted. `skipped` counts ignored names by kind."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        skipped[DOT] += sum(map(_hidden, (*folders, *names)))
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            if _hidden(name):
                continue
            if name.lower().endswith(EXTENSIONS):
                found.append(Path(parent) / name)
            else:
                skipped[Path(name).suffix or "without extension"] += 1
    return sorted(found)


def _class_folders(folder: Path, skipped: Counter[str]) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing: expected one folder of images per class in it; set data.root to "
            "the folder that has train/ and val/"
        )
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    skipped[DOT] += sum(map(_hidden, names))
    return sorted(name for name in names if not _hidden(name))


def index_folder(
    root: Path, part: str, classes: Sequence[str], skipped: Counter[str]
) -> FolderSplit:
    """Index `root/part/<class>/**`, sorted by class and then by path; labels follow `classes`.

    Raises:
        DataError: the folder is missing, has classes not in `classes`, or classes without images.
    """
    paths: list[str] = []
    labels: list[int] = []
    problems = []
    for name in _class_folders(root / part, skipped):
        if name not in classes:
            problems.append(f"{root / part / name}: no such class in {root / 'train'}")
            continue
        files = _image_files(root / part / name, skipped)
        if not files:
            problems.append(f"{root / part / name} has no image ({', '.join(EXTENSIONS)})")
        paths += [file.relative_to(root).as_posix() for file in files]
        labels += [classes.index(name)] * len(files)
    refuse(problems, f"class folders of {root / part} cannot be used")
    return FolderSplit(str(root), tuple(paths), torch.tensor(labels, dtype=torch.int64))


def folder_images(root: Path) -> list[str]:
    """Paths of all images below `root` that `load_folder` would index."""
    return [
        file.relative_to(root).as_posix()
        for part in PARTS
        for name in _class_folders(root / part, Counter())
        for file in _image_files(root / part / name, Counter())
    ]


def load_folder(root: Path, download: bool) -> RawData:
    """Index `root/train/<class>/` and `root/val/<class>/`; val/ is the test split."""
    del download  # a user's own folder
    skipped: Counter[str] = Counter()
    classes = tuple(_class_folders(root / "train", Counter()))
    train, test = (index_folder(root, part, classes, skipped) for part in PARTS)
    if kinds := [f"{count} {kind}" for kind, count in sorted(skipped.items()) if count]:
        log.info("%s: left out, as they are no images: %s", root, ", ".join(kinds))
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
        DataError: images cannot be decoded or differ in size from the first; lists them.
    """
    if not split.paths:
        return TensorSplit(torch.empty(0, 3, 1, 1, dtype=torch.uint8), split.labels)
    files = [Path(split.root) / path for path in split.paths]
    shape = next((p.shape for p in map(_pixels, files) if isinstance(p, np.ndarray)), (0, 0, 3))
    images = np.empty((len(split), *shape), dtype=np.uint8)

    def place(row: int) -> str | None:
        pixels = _pixels(files[row])
        if isinstance(pixels, DataError):
            return str(pixels)
        if pixels.shape != shape:
            return f"{files[row]}: shape {pixels.shape}, others {shape}"
        images[row] = pixels
        return None

    problems = in_parallel(place, range(len(files)), "reading images")
    refuse(filter(None, problems), f"of {len(files)} images cannot be used")
    return TensorSplit(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), split.labels)


def _pixels(path: Path) -> np.ndarray[Any, Any] | DataError:
    try:
        return np.asarray(decode(path))
    except DataError as error:
        return error


def load_tiny_imagenet(root: Path, download: bool) -> RawData:
    """Tiny ImageNet's 200 classes at 64 x 64. Its val/ is the test split; test/ has no labels.

    Reads the archive's flat val/ as well as one sorted into class folders; moves no file.
    """
    base = root / TINY_FOLDER
    if not base.is_dir():
        fetch(root, [TINY_ARCHIVE], download, lambda: _download(root))
        _unpack(root)
    skipped: Counter[str] = Counter()  # not reported: the archive's own lists of boxes
    classes = tuple(_class_folders(base / "train", skipped))
    train = index_folder(base, "train", classes, skipped)
    flat = (base / "val" / "val_annotations.txt").is_file()
    test = _annotated(base, classes) if flat else index_folder(base, "val", classes, skipped)
    return RawData(_decoded(train), _decoded(test), classes, _archive_md5(root))


def _download(root: Path) -> None:
    from torchvision.datasets.utils import download_url

    download_url(TINY_ARCHIVE.url, root, TINY_ARCHIVE.path, TINY_ARCHIVE.md5)


def _unpack(root: Path) -> None:
    """Unpack to a temporary folder, then rename, so that no half-unpacked archive is read."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as partial:
        extract_archive(root / TINY_ARCHIVE.path, partial)
        if not (Path(partial) / TINY_FOLDER).is_dir():
            raise missing_error(root, TINY_ARCHIVE, f"the archive has no {TINY_FOLDER}/")
        os.replace(Path(partial) / TINY_FOLDER, root / TINY_FOLDER)


def _archive_md5(root: Path) -> dict[str, str]:
    """The archive's md5, if the archive exists. Its 110,000 files have no official checksums."""
    if TINY_ARCHIVE.md5 and check_md5(root, TINY_ARCHIVE):
        return {TINY_ARCHIVE.path: TINY_ARCHIVE.md5}
    return {}
