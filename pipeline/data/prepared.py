"""Read prepared data. Splits are loaded on demand, and every file is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pipeline.data.augment import Transform
from pipeline.data.config import Augmentation
from pipeline.data.files import DataError
from pipeline.data.folders import folder_images
from pipeline.data.info import DatasetInfo
from pipeline.data.inventory import cache_path, require_same
from pipeline.data.prepare import CARD, INVENTORY
from pipeline.data.splits import FolderSplit, Split, TensorSplit
from pipeline.data.squad.prepared import QUESTIONS, QuestionSplit, read_split
from pipeline.files import DamagedFileError, file_sha256, read_json

_REMEDY = "run `dvc repro prepare-data`"
AnySplit = Split | QuestionSplit
_AUGMENT: TypeAdapter[tuple[Augmentation, ...]] = TypeAdapter(tuple[Augmentation, ...])


class Prepared:
    """A prepared data set.

    Attributes:
        card: the content of card.json.
        info: the facts that a model builder may use.
        mean, std: statistics per channel for normalisation (images only).
        transform: how images become network input, including training augmentation.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any]) -> None:
        self._folder = folder
        self._verified = False
        self.card = card
        self.info = DatasetInfo(card["name"], tuple(card["input_shape"]), card["num_classes"])
        if "squad" in card:
            return  # no images
        _, height, width = card["input_shape"]
        self.mean, self.std = tuple(card["mean"]), tuple(card["std"])
        augment = _AUGMENT.validate_python(card["augment"])
        self.transform = Transform(augment, (height, width), self.mean, self.std)

    def train(self) -> AnySplit:
        """The training split."""
        return self._split("train")

    def validation(self) -> AnySplit | None:
        """The validation split; None without `data.val_size`."""
        return self._split("validation") if "validation" in self.card["files"] else None

    def test(self) -> AnySplit:
        """The test split, for the stages `evaluate`, `sweep` and `connect` only."""
        return self._split("test")

    def _split(self, name: str) -> AnySplit:
        path = self._checked(name)
        if "squad" in self.card:
            answered = name + QUESTIONS in self.card["files"]
            return read_split(path, self._checked(name + QUESTIONS) if answered else None)
        if path.suffix == ".json":
            self.require_same_images()
            index = read_json(path)
            labels = torch.tensor(index["labels"], dtype=torch.int64)
            return FolderSplit(index["root"], tuple(index["paths"]), labels)
        from safetensors.torch import load_file

        tensors = load_file(path)
        return TensorSplit(tensors["images"], tensors["labels"])

    def require_same_images(self, absent_ok: bool = False) -> None:
        """Check, once, that a folder of images is as prepare-data found it.

        Args:
            absent_ok: accept a machine without this folder.

        Raises:
            DataError: images were added, removed or replaced; says how many and what to do.
        """
        if self._verified or INVENTORY not in self.card["files"]:
            return
        table = read_json(self._checked(INVENTORY))
        root = Path(table["root"])
        if absent_ok and not root.is_dir():
            return
        require_same(root, table["files"], folder_images(root), cache_path(self._folder))
        self._verified = True

    def _checked(self, name: str) -> Path:
        entry = self.card["files"][name]
        path = self._folder / entry["file"]
        check_size(path, entry["bytes"])
        if file_sha256(path) != entry["sha256"]:
            raise DataError(f"{path}: content differs from its checksum in {CARD}; {_REMEDY}")
        return path


def check_size(path: Path, size: int) -> None:
    """Raise DataError unless the file has `size` bytes."""
    if not path.is_file():
        raise DataError(f"{path} is missing; {_REMEDY}")
    if path.stat().st_size != size:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes instead of {size}, truncated or replaced; "
            f"{_REMEDY}"
        )


def load_prepared(folder: Path) -> Prepared:
    """Open a prepared data set. Checks sizes now, and checksums when a split is read.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise DataError(f"{path} is missing; {_REMEDY}")
    try:
        card = read_json(path)
        for entry in card["files"].values():
            check_size(path.parent / entry["file"], entry["bytes"])
        return Prepared(path.parent, card)
    except (DamagedFileError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a data card ({error}); {_REMEDY}") from error


def require_same_images(folder: Path) -> None:
    """Refuse prepared data if the folder of images has changed; for stages that read no image.

    Checks nothing if no data is prepared or the images are not on this machine.

    Raises:
        DataError: see `Prepared.require_same_images`.
    """
    if (folder / CARD).is_file():
        load_prepared(folder).require_same_images(absent_ok=True)
