"""Every data set is read from small files in its real format; errors name file and way out."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import folders
from pipeline.data.config import DataConfig
from pipeline.data.datasets import load_raw
from pipeline.data.files import DataError
from pipeline.data.raw import RawData
from pipeline.data.splits import FolderSplit, TensorSplit
from tests.pipeline.data.conftest import cifar_batch, idx, jpeg, md5, random_images


def load(name: str, root: Path | None, **more: object) -> RawData:
    raw = load_raw(DataConfig(name=name, root=root and str(root), download=False, **more))
    for split in (raw.train, raw.test):
        assert split.labels.dtype == torch.int64
        if isinstance(split, TensorSplit):
            assert split.images.dtype == torch.uint8
            assert split.images.is_contiguous()
    return raw


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as utils

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(utils, "_get_redirect_url", refuse)
    monkeypatch.setattr(utils, "_urlretrieve", refuse)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    raw = load("digits", None)
    assert raw.train.images.shape == (1437, 1, 8, 8)
    assert raw.test.images.shape == (360, 1, 8, 8)
    assert raw.test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert raw.train.images.max() == 255
    everything = torch.cat([raw.train.images, raw.test.images]).flatten(1)
    rows = {bytes(row) for row in everything.numpy()}
    original = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert rows == {bytes(row) for row in original}


def test_cifar10(cifar10_root: Path) -> None:
    raw = load("cifar10", cifar10_root)
    assert raw.train.images.shape == (100, 3, 32, 32)
    second, _ = cifar_batch(20, 2)
    assert torch.equal(raw.train.images[20], torch.from_numpy(second["data"][0]).view(3, 32, 32))
    last, _ = cifar_batch(20, 6)
    assert torch.equal(raw.test.images.flatten(1), torch.from_numpy(last["data"]))
    assert raw.test.labels.tolist() == last["labels"]
    assert raw.class_names[3] == "class3"
    assert len(raw.sources) == 7


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, attribute, seed in (("train", "train_list", 1), ("test", "test_list", 2)):
        _, data = cifar_batch(30, seed, key="fine_labels", classes=100)
        (folder / name).write_bytes(data)
        monkeypatch.setattr(CIFAR100, attribute, [[name, md5(data)]])
    names = pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]})
    (folder / "meta").write_bytes(names)
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(names)})
    raw = load("cifar100", tmp_path)
    assert raw.train.labels.tolist() == list(range(30))
    assert len(raw.class_names) == 100


def test_mnist_from_compressed_files(mnist_root: Path, no_network: None) -> None:
    config = DataConfig(name="mnist", root=str(mnist_root))
    raw = load_raw(config)  # unpacks what is there
    assert torch.equal(raw.train.images[:, 0], torch.from_numpy(random_images(30, (28, 28), 1)))
    assert raw.test.labels.tolist() == list(range(10))
    assert load("mnist", mnist_root).sources == raw.sources


def test_fashion_mnist_from_unpacked_files(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 12), ("t10k", 4)):
        images = random_images(n, (28, 28), n)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % 10))
    raw = load("fashion_mnist", tmp_path)
    assert raw.train.images.shape == (12, 1, 28, 28)
    assert raw.class_names[0] == "T-shirt/top"


def test_svhn_label_ten_is_the_digit_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    pixels = random_images(12, (32, 32, 3))
    lists = dict(SVHN.split_list)
    for split in ("train", "test"):
        url, name, _ = lists[split]
        labels = np.arange(1, 13)[:, None] % 10
        labels[labels == 0] = 10
        savemat(tmp_path / name, {"X": pixels.transpose(1, 2, 3, 0), "y": labels})
        lists[split] = [url, name, md5((tmp_path / name).read_bytes())]
    monkeypatch.setattr(SVHN, "split_list", lists)
    raw = load("svhn", tmp_path)
    assert raw.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert torch.equal(raw.train.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_tiny_imagenet_s_flat_validation_folder_is_sorted_by_its_table(tiny_root: Path) -> None:
    before = sorted(tiny_root.rglob("*"))
    raw = load("tiny_imagenet", tiny_root)
    assert raw.class_names == ("n01", "n02")
    assert raw.train.images.shape == (8, 3, 64, 64)
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4
    assert raw.test.labels.tolist() == [0, 1, 1, 0]
    with Image.open(tiny_root / "tiny-imagenet-200" / "val" / "images" / "val_2.JPEG") as image:
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(raw.test.images[2], expected)
    assert sorted(tiny_root.rglob("*")) == before


def test_tiny_imagenet_already_sorted_by_the_user(tiny_root: Path) -> None:
    val = tiny_root / "tiny-imagenet-200" / "val"
    for i, name in enumerate(("n01", "n02", "n02", "n01")):
        target = val / name / "images" / f"val_{i}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(val / "images" / f"val_{i}.JPEG", target)
    (val / "val_annotations.txt").unlink()
    shutil.rmtree(val / "images")
    assert load("tiny_imagenet", tiny_root).test.labels.tolist() == [0, 0, 1, 1]


def test_tiny_imagenet_from_its_archive(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
        for file in sorted(tiny_root.rglob("*")):
            archive.write(file, file.relative_to(tiny_root))
    digest = md5((root / "tiny-imagenet-200.zip").read_bytes())
    official = folders.Source("tiny-imagenet-200.zip", digest, folders.TINY_ARCHIVE.url)
    monkeypatch.setattr(folders, "TINY_ARCHIVE", official)
    raw = load("tiny_imagenet", root)
    assert len(raw.train) == 8
    assert sorted(p.name for p in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    assert raw.sources == {"tiny-imagenet-200.zip": digest}


@pytest.mark.parametrize(
    "line", ["val_0.JPEG n01", "val_0.JPEG\tn99\t0", "../../secret.JPEG\tn01\t0", ""]
)
def test_tiny_imagenet_bad_annotation_names_the_line(tiny_root: Path, line: str) -> None:
    table = tiny_root / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    table.write_text("val_1.JPEG\tn01\t0\n" + line + "\n")
    with pytest.raises(DataError, match=r"val_annotations.txt, line 2: expected"):
        load("tiny_imagenet", tiny_root)


def test_tiny_imagenet_image_of_another_size(tiny_root: Path) -> None:
    jpeg(tiny_root / "tiny-imagenet-200/train/n02/images/n02_1.JPEG", (32, 64), 0)
    with pytest.raises(DataError, match=r"n02_1.JPEG: shape"):
        load("tiny_imagenet", tiny_root)


def test_imagefolder_is_indexed_in_order(folder_root: Path) -> None:
    raw = load("imagefolder", folder_root)
    assert isinstance(raw.train, FolderSplit)
    assert raw.class_names == ("n01", "n02", "n03")
    assert raw.train.paths == tuple(sorted(raw.train.paths))
    assert raw.train.paths[0] == "train/n01/n01_0.JPEG"
    assert raw.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert len(raw.test) == 6


def test_imagefolder_refuses_strange_folders(folder_root: Path) -> None:
    (folder_root / "val" / "n09").mkdir()
    with pytest.raises(DataError, match="n09: no such class in .*train"):
        load("imagefolder", folder_root)
    (folder_root / "train" / "n09").mkdir()
    with pytest.raises(DataError, match="n09 has no image"):
        load("imagefolder", folder_root)
    with pytest.raises(DataError, match="train is missing: expected one folder of images per"):
        load("imagefolder", folder_root / "val")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("svhn", "train_32x32.mat"),
        ("tiny_imagenet", "tiny-imagenet-200.zip"),
    ],
)
def test_missing_without_network(name: str, file: str, tmp_path: Path, no_network: None) -> None:
    root = tmp_path / "empty"
    with pytest.raises(DataError) as caught:
        load_raw(DataConfig(name=name, root=str(root)))
    for part in (str(root / file), "is missing", "no network in tests", "http", "data.root"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"data\.download is false"):
        load_raw(DataConfig(name=name, root=str(root), download=False))


def test_wrong_md5_is_named_and_the_pickle_is_not_opened(cifar10_root: Path) -> None:
    path = cifar10_root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path}: md5 is [0-9a-f]{{32}}, the official file's is"):
        load("cifar10", cifar10_root)


def test_wrong_md5_of_a_compressed_file(mnist_root: Path) -> None:
    path = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"else"))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz: md5 is"):
        load("mnist", mnist_root)


def test_truncated_unpacked_file(mnist_root: Path, no_network: None) -> None:
    load_raw(DataConfig(name="mnist", root=str(mnist_root)))
    path = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot read .*train-images-idx3-ubyte"):
        load("mnist", mnist_root)


def test_counts_of_images_and_labels_must_agree(mnist_root: Path, no_network: None) -> None:
    load_raw(DataConfig(name="mnist", root=str(mnist_root)))
    path = mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.arange(29) % 10))
    with pytest.raises(DataError, match="30 images but 29 labels"):
        load("mnist", mnist_root)
