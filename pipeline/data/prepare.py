"""Prepare raw data: plain tensors or indices of files, split, with counts and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.config import DataConfig, RandomResizedCrop, Statistics
from pipeline.data.datasets import load_raw
from pipeline.data.files import DataError, replaced_folder
from pipeline.data.inventory import cache_path, take
from pipeline.data.raw import RawData
from pipeline.data.splits import FolderSplit, Split, TensorSplit, class_counts, stratified
from pipeline.data.squad.prepared import prepare_squad
from pipeline.files import file_sha256, write_json

CARD = "card.json"
INVENTORY = "images"
_CHUNK = 4096


def pixel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation per channel over all pixels of uint8 [N, C, H, W], in [0, 1].

    Sums are integers, so the result does not depend on order, threads or machine.
    """
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for chunk in torch.split(images, _CHUNK):
        values = chunk.to(torch.int64).sum((0, 2, 3))
        total += values
        squares += chunk.to(torch.int32).square().sum((0, 2, 3), dtype=torch.int64)
    count = images.numel() // images.shape[1]
    mean = [t / count for t in total.tolist()]
    std = [(s / count - m * m) ** 0.5 for s, m in zip(squares.tolist(), mean, strict=True)]
    return Statistics(
        mean=tuple(round(m / 255, 6) for m in mean),
        # A constant channel has deviation 0 and cannot be normalised.
        std=tuple(round(s / 255, 6) or 1.0 for s in std),
    )


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images scaled to `size`, bilinear with antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    done = [
        torch.nn.functional.interpolate(chunk.float(), size, mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for chunk in torch.split(images, _CHUNK)
    ]
    return torch.cat(done)


def draw_splits(config: DataConfig, raw: RawData) -> dict[str, Split]:
    """Training, validation (if asked for) and test split.

    The validation images are drawn from the whole training set, so `limit` does not change them.

    Raises:
        DataError: there are fewer images than requested.
    """
    train, splits = raw.train, {}
    try:
        if config.val_size is not None:
            chosen, rest = stratified(train.labels, config.val_size, config.split_seed)
            splits["validation"] = train.take(chosen)
            train = train.take(rest)
        if config.limit is not None:
            train = train.take(stratified(train.labels, config.limit, config.split_seed)[0])
    except DataError as error:
        raise DataError(f"data.val_size or data.limit of {config.name}: {error}") from error
    if len(train) == 0:
        raise DataError(f"data.val_size: {config.val_size} leaves {config.name} no training image")
    return {"train": train, **splits, "test": raw.test}


def _fitted(config: DataConfig, name: str, split: TensorSplit) -> TensorSplit:
    """The split with the requested channels and, unless augmentation scales later, size."""
    images = split.images
    if config.rgb and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    scales_later = name == "train" and any(isinstance(a, RandomResizedCrop) for a in config.augment)
    if config.size is not None and not scales_later:
        images = resized(images, (config.size, config.size))
    return TensorSplit(images.contiguous(), split.labels)


def _write(split: Split, folder: Path, name: str) -> Path:
    if isinstance(split, TensorSplit):
        from safetensors.torch import save_file

        path = folder / f"{name}.safetensors"
        save_file({"images": split.images, "labels": split.labels}, path)
        path.chmod(0o644)  # safetensors writes for the owner only; a shared cache has readers
        return path
    path = folder / f"{name}.json"
    index = {"root": split.root, "paths": list(split.paths), "labels": split.labels.tolist()}
    write_json(path, index)
    return path


def _card(config: DataConfig, raw: RawData, splits: dict[str, Split]) -> dict[str, Any]:
    train, test = splits["train"], splits["test"]
    if isinstance(train, TensorSplit) and isinstance(test, TensorSplit):
        computed = pixel_statistics(train.images)
        shape = list(test.images.shape[1:])
    else:
        assert config.size is not None  # DataConfig refuses None for folders
        computed, shape = None, [3, config.size, config.size]
    in_use = computed if config.normalise == "computed" else config.normalise
    assert isinstance(in_use, Statistics)  # DataConfig refuses "computed" for folders
    in_use = in_use.for_channels(shape[0])
    classes = len(raw.class_names)
    return {
        "name": config.name,
        "input_shape": shape,
        "num_classes": classes,
        "class_names": list(raw.class_names),
        "counts": {
            name: {"total": len(s), "per_class": class_counts(s.labels, classes)}
            for name, s in splits.items()
        },
        "mean": list(in_use.mean),
        "std": list(in_use.std),
        "computed": computed and computed.model_dump(mode="json"),
        "augment": [a.model_dump(mode="json") for a in config.augment],
        "split_seed": config.split_seed,
        "sources": dict(raw.sources),
    }


def _inventory(raw: RawData, drawn: dict[str, Split], cache: Path) -> dict[str, Any] | None:
    """The root, and SHA-256 by path of all images below it (None for images that no split uses).
    None for data in memory."""
    if not (isinstance(raw.train, FolderSplit) and isinstance(raw.test, FolderSplit)):
        return None
    read = [p for s in drawn.values() if isinstance(s, FolderSplit) for p in s.paths]
    digests = take(Path(raw.train.root), read, cache)
    listed = (*raw.train.paths, *raw.test.paths)
    return {"root": raw.train.root, "files": {path: digests.get(path) for path in listed}}


def prepare(config: DataConfig, out: Path) -> None:
    """Write `train`, `validation` (if asked for) and `test`, and the card, into `out`.

    Images in memory are written as safetensors (images uint8 [N, C, H, W], labels int64 [N]), a
    folder of images as JSON indices. The same config and files give the same bytes. `out` changes
    only after everything is written.

    Raises:
        DataError: see `load_raw`, `draw_splits`.
        ValueError: the statistics do not fit the number of channels.
    """
    if config.squad is not None:
        prepare_squad(config, out)
        return
    raw = load_raw(config)
    drawn = draw_splits(config, raw)
    inventory = _inventory(raw, drawn, cache_path(out))
    splits: dict[str, Split] = {
        name: split if isinstance(split, FolderSplit) else _fitted(config, name, split)
        for name, split in drawn.items()
    }
    card = _card(config, raw, splits)
    with replaced_folder(out) as folder:
        files = {name: _write(split, folder, name) for name, split in splits.items()}
        if inventory is not None:
            files[INVENTORY] = folder / f"{INVENTORY}.json"
            write_json(files[INVENTORY], inventory)
        card["files"] = {
            name: {"file": p.name, "bytes": p.stat().st_size, "sha256": file_sha256(p)}
            for name, p in files.items()
        }
        write_json(folder / CARD, card)
