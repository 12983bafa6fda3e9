"""Tiny data sets in the real formats on disk, and splits of random images."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.splits import TensorSplit


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def random_images(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def split() -> TensorSplit:
    images = torch.from_numpy(random_images(50, (3, 8, 8)))
    return TensorSplit(images, torch.arange(50) % 10)


def idx(values: np.ndarray) -> bytes:
    """An idx file: magic (type 8 = ubyte, number of dimensions), sizes, bytes; big-endian."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def cifar_batch(n: int, seed: int, key: str = "labels", classes: int = 10) -> tuple[dict, bytes]:
    images = random_images(n, (3 * 32 * 32,), seed)
    entry = {"data": images, key: [i % classes for i in range(n)]}
    return entry, pickle.dumps(entry)


@pytest.fixture
def cifar10_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 with 20 images per training batch and 20 test images; md5 lists say so."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "raw" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, data: bytes) -> list[str]:
        (folder / name).write_bytes(data)
        return [name, md5(data)]

    train = [write(f"data_batch_{i}", cifar_batch(20, i)[1]) for i in range(1, 6)]
    test = [write("test_batch", cifar_batch(20, 6)[1])]
    meta = write("batches.meta", pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta[1]})
    return tmp_path / "raw"


@pytest.fixture
def mnist_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST's four compressed idx files with 30 training and 10 test images of 28 x 28."""
    from torchvision.datasets import MNIST

    folder = tmp_path / "raw" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    resources = []
    for part, n, seed in (("train", 30, 1), ("t10k", 10, 2)):
        for what, values in (
            ("images-idx3", random_images(n, (28, 28), seed)),
            ("labels-idx1", np.arange(n) % 10),
        ):
            data = gzip.compress(idx(values), mtime=0)
            name = f"{part}-{what}-ubyte.gz"
            (folder / name).write_bytes(data)
            resources.append((name, md5(data)))
    monkeypatch.setattr(MNIST, "resources", resources)
    return tmp_path / "raw"


def jpeg(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(random_images(1, (4, 4, 3), seed)[0])
    small.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    """train/ with 6 images of each of 3 classes, val/ with 2; sizes differ."""
    root = tmp_path / "images"
    for part, count in (("train", 6), ("val", 2)):
        for c, name in enumerate(("n01", "n02", "n03")):
            for i in range(count):
                size = (40 + 5 * i, 60 - 4 * c)
                jpeg(root / part / name / f"{name}_{i}.JPEG", size, seed=100 * c + i)
    return root


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Tiny ImageNet as in its archive: 2 classes, 4 training images each, flat val/ of 4."""
    base = tmp_path / "raw" / "tiny-imagenet-200"
    lines = []
    for c, name in enumerate(("n02", "n01")):
        for i in range(4):
            jpeg(base / "train" / name / "images" / f"{name}_{i}.JPEG", (64, 64), 10 * c + i)
        (base / "train" / name / f"{name}_boxes.txt").write_text("")
    for i, name in enumerate(("n01", "n02", "n02", "n01")):
        jpeg(base / "val" / "images" / f"val_{i}.JPEG", (64, 64), 50 + i)
        lines.append(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n")
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path / "raw"
