"""Prepared files: their content, that they are reproducible, that damage is detected."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import prepare as prepare_module
from pipeline.data.config import DataConfig
from pipeline.data.files import DataError
from pipeline.data.info import DatasetInfo
from pipeline.data.prepare import pixel_statistics, prepare, resized
from pipeline.data.prepared import load_prepared
from pipeline.data.splits import FolderSplit, TensorSplit


def digits(out: Path, **more: object) -> Path:
    prepare(DataConfig(name="digits", **more), out)
    return out


def rows(split: TensorSplit) -> set[bytes]:
    return {bytes(row) for row in split.images.flatten(1).numpy()}


def test_splits_are_disjoint_stratified_and_complete(tmp_path: Path) -> None:
    prepared = load_prepared(digits(tmp_path / "d", val_size=137))
    train, validation, test = prepared.train(), prepared.validation(), prepared.test()
    assert [len(s) for s in (train, validation, test)] == [1300, 137, 360]
    assert len(rows(train) | rows(validation) | rows(test)) == 1797
    counts = prepared.card["counts"]["validation"]
    assert counts == {"total": 137, "per_class": validation.labels.bincount().tolist()}
    assert max(counts["per_class"]) - min(counts["per_class"]) <= 2


def test_without_val_size_there_is_no_validation_split(tmp_path: Path) -> None:
    out = digits(tmp_path / "d", val_size=10)
    out = digits(tmp_path / "d")
    assert load_prepared(out).validation() is None
    assert not (out / "validation.safetensors").exists()


def test_the_seed_chooses_the_split_and_the_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    first, again, other = (
        {p.name: p.read_bytes() for p in digits(tmp_path / name, val_size=100, **more).iterdir()}
        for name, more in (("a", {}), ("b", {}), ("c", {"split_seed": 1}))
    )
    assert first == again
    assert set(first) == {
        "train.safetensors",
        "validation.safetensors",
        "test.safetensors",
        "card.json",
    }
    assert first["validation.safetensors"] != other["validation.safetensors"]
    assert first["test.safetensors"] == other["test.safetensors"]


def test_limit_keeps_a_stratified_slice_and_does_not_touch_the_other_splits(tmp_path: Path) -> None:
    full = load_prepared(digits(tmp_path / "a", val_size=100))
    small = load_prepared(digits(tmp_path / "b", val_size=100, limit=50))
    assert small.card["counts"]["train"]["total"] == 50
    assert set(small.card["counts"]["train"]["per_class"]) == {5}
    assert rows(small.train()) <= rows(full.train())
    assert torch.equal(small.validation().images, full.validation().images)
    assert torch.equal(small.test().images, full.test().images)


@pytest.mark.parametrize("more", [{"val_size": 1437}, {"val_size": 2000}, {"limit": 1438}])
def test_more_images_than_there_are(more: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.(val_size|limit)"):
        digits(tmp_path / "d", **more)
    assert list(tmp_path.iterdir()) == []


def test_card(tmp_path: Path) -> None:
    out = digits(tmp_path / "d", val_size=100, augment=["flip"])
    card = json.loads((out / "card.json").read_text())
    assert card["name"] == "digits"
    assert card["input_shape"] == [1, 8, 8]
    assert card["class_names"] == [str(i) for i in range(10)]
    assert card["split_seed"] == 0
    assert card["augment"] == [{"name": "flip", "probability": 0.5}]
    for name, entry in card["files"].items():
        data = (out / f"{name}.safetensors").read_bytes()
        assert entry["bytes"] == len(data)
        assert (out / f"{name}.safetensors").stat().st_mode & 0o444 == 0o444
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    train = load_prepared(out).train().images.double() / 255
    assert card["computed"]["mean"] == [pytest.approx(train.mean().item(), abs=1e-6)]
    assert card["computed"]["std"] == [pytest.approx(train.std(correction=0).item(), abs=1e-6)]
    assert card["mean"] == card["computed"]["mean"]


def test_card_names_the_source_files(cifar10_root: Path, tmp_path: Path) -> None:
    prepare(DataConfig(name="cifar10", root=str(cifar10_root), preset="oto"), tmp_path / "c")
    prepared = load_prepared(tmp_path / "c")
    batch = cifar10_root / "cifar-10-batches-py" / "test_batch"
    assert prepared.card["sources"]["cifar-10-batches-py/test_batch"] == (
        hashlib.md5(batch.read_bytes()).hexdigest()
    )
    assert prepared.info == DatasetInfo("cifar10", (3, 32, 32), 10)
    assert prepared.mean == (0.485, 0.456, 0.406)
    assert prepared.card["computed"]["mean"] != list(prepared.mean)


def test_statistics_are_per_channel_and_a_flat_channel_divides_by_one() -> None:
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8)
    images[:, 2] = 7
    found = pixel_statistics(images)
    values = images.double() / 255
    assert found.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert found.std[:2] == pytest.approx(
        values.std((0, 2, 3), correction=0)[:2].tolist(), abs=1e-6
    )
    assert found.std[2] == 1.0


def test_rgb_and_size(mnist_root: Path, tmp_path: Path) -> None:
    config = DataConfig(name="mnist", root=str(mnist_root), rgb=True, size=32)
    prepare(config, tmp_path / "m")
    prepared = load_prepared(tmp_path / "m")
    assert prepared.info.input_shape == (3, 32, 32)
    assert prepared.mean == (0.1307,) * 3
    images = prepared.train().images
    assert images.shape == (30, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])


def test_statistics_of_another_number_of_channels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 means for images of 1 channel"):
        digits(tmp_path / "d", normalise="imagenet")


def test_resized_equals_pillow_within_rounding() -> None:
    batch = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    ours = resized(batch, (32, 32))
    for image, small in zip(batch, ours, strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        theirs = np.array(pil.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(theirs.astype(int) - small.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_random_resized_crop_keeps_training_images_at_full_size(
    tiny_root: Path, tmp_path: Path
) -> None:
    config = DataConfig(name="tiny_imagenet", root=str(tiny_root), preset="sfw-pruning", val_size=2)
    prepare(config, tmp_path / "t")
    prepared = load_prepared(tmp_path / "t")
    assert prepared.info.input_shape == (3, 32, 32)
    assert prepared.train().images.shape == (6, 3, 64, 64)
    assert prepared.validation().images.shape == (2, 3, 32, 32)
    assert prepared.test().images.shape == (4, 3, 32, 32)


def test_folder_is_indexed_not_copied(folder_root: Path, tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=str(folder_root), size=24, val_size=3)
    prepare(config, tmp_path / "f")
    prepared = load_prepared(tmp_path / "f")
    train, validation = prepared.train(), prepared.validation()
    assert isinstance(train, FolderSplit)
    assert isinstance(validation, FolderSplit)
    assert validation.labels.tolist() == [0, 1, 2]
    assert set(train.paths).isdisjoint(validation.paths)
    assert len(train) == 15
    assert prepared.info.input_shape == (3, 24, 24)
    assert prepared.card["computed"] is None


@pytest.mark.parametrize("file", ["train.safetensors", "test.safetensors", "card.json"])
def test_missing_file(file: str, tmp_path: Path) -> None:
    out = digits(tmp_path / "d")
    (out / file).unlink()
    with pytest.raises(DataError, match=f"{file} is missing; run `dvc repro prepare-data`"):
        load_prepared(out)


def test_truncated_file_is_noticed_on_opening(tmp_path: Path) -> None:
    out = digits(tmp_path / "d")
    path = out / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"train.safetensors: \d+ bytes instead of .*dvc repro"):
        load_prepared(out)


def test_one_flipped_bit_is_noticed_on_reading(tmp_path: Path) -> None:
    out = digits(tmp_path / "d")
    path = out / "test.safetensors"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    prepared = load_prepared(out)
    prepared.train()
    with pytest.raises(DataError, match=r"test.safetensors: content differs .*prepare-data"):
        prepared.test()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": {}, "name": "x"}'])
def test_damaged_card(content: str, tmp_path: Path) -> None:
    out = digits(tmp_path / "d")
    (out / "card.json").write_text(content)
    with pytest.raises(DataError, match=r"card.json: not a data card .*prepare-data"):
        load_prepared(out)


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = digits(tmp_path / "d")
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_json", full)
    with pytest.raises(OSError, match=r"d: the disk is full \([\d.]+ MB free\)"):
        digits(out, val_size=10)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
