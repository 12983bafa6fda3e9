"""Streamed folders of images give the same guarantees as images in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.augment import Transform
from pipeline.data.batches import Placement
from pipeline.data.config import DataConfig, RandomResizedCrop
from pipeline.data.files import DataError
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.data.splits import FolderSplit
from pipeline.data.stream import StreamBatches, StreamEval, centre_crop, resized_crop

HERE = Placement(workers=0)


@pytest.fixture
def prepared(folder_root: Path, tmp_path: Path) -> Prepared:
    config = DataConfig(
        name="imagefolder",
        root=str(folder_root),
        size=24,
        augment=["random_resized_crop", "color_jitter", "lighting", "flip"],
    )
    prepare(config, tmp_path / "prepared")
    return load_prepared(tmp_path / "prepared")


def train(prepared: Prepared, placement: Placement = HERE) -> StreamBatches:
    source = make_train_batches(prepared, batch_size=4, seed=1, placement=placement)
    assert isinstance(source, StreamBatches)
    return source


def equal(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, a) and torch.equal(y, b)
        for (x, y), (a, b) in zip(first, second, strict=True)
    )


def test_an_epoch_shows_every_image_once(prepared: Prepared) -> None:
    source = train(prepared)
    seen = list(source.epoch(0))
    assert [len(y) for _, y in seen] == [4, 4, 4, 4, 2]
    assert len(source) == 5
    assert torch.cat([y for _, y in seen]).bincount().tolist() == [6, 6, 6]
    assert seen[0][0].shape == (4, 3, 24, 24)
    assert seen[0][0].dtype == torch.float32


@pytest.mark.parametrize("start", [0, 2, 4, 5])
def test_resume_equals_undisturbed(prepared: Prepared, start: int) -> None:
    undisturbed = list(train(prepared).epoch(3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert equal(list(train(prepared).epoch(3, start)), undisturbed[start:])
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(list(train(prepared).epoch(2)), undisturbed)


def test_every_image_gets_a_crop_of_its_own(folder_root: Path) -> None:
    same = tuple(["train/n01/n01_0.JPEG"] * 6)
    split = FolderSplit(str(folder_root), same, torch.zeros(6, dtype=torch.int64))
    transform = Transform((RandomResizedCrop(),), (24, 24), (0.5,) * 3, (0.5,) * 3)
    source = StreamBatches(split, transform, batch_size=6, seed=0, placement=HERE)
    crops = next(source.epoch(0))[0]
    assert len({bytes(crop.numpy().tobytes()) for crop in crops}) == 6


# Python 3.12 warns of any fork in a process with threads; the workers touch none of them.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(prepared: Prepared) -> None:
    here = list(train(prepared).epoch(0, 1))
    assert equal(here, list(train(prepared, Placement(workers=2)).epoch(0, 1)))


def test_start_outside_the_epoch(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="start_step 6 outside an epoch of 5 steps"):
        train(prepared).epoch(0, 6)


@pytest.mark.parametrize("size", [(50, 40), (37, 91), (224, 224), (20, 300)])
def test_evaluation_crop_equals_torchvision_s(size: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = Compose([Resize(256), CenterCrop(224)])(image)
    assert np.array_equal(np.array(centre_crop(image, (224, 224))), np.array(theirs))


def test_training_crop_equals_torchvision_s() -> None:
    from torchvision.transforms.functional import resized_crop as theirs

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    ours = resized_crop(image, (3, 5, 30, 20), (24, 24))
    assert np.array_equal(np.array(ours), np.array(theirs(image, 3, 5, 30, 20, [24, 24])))


def test_evaluation_is_in_order(prepared: Prepared) -> None:
    split = prepared.test()
    source = make_eval_batches(prepared, split, batch_size=4, placement=HERE)
    assert isinstance(source, StreamEval)
    assert len(source) == 2
    seen = list(source)
    assert torch.cat([y for _, y in seen]).tolist() == [0, 0, 1, 1, 2, 2]
    assert equal(seen, list(source))


def test_an_image_that_is_truncated_meanwhile_is_named(
    prepared: Prepared, folder_root: Path
) -> None:
    source = train(prepared)
    path = folder_root / "train" / "n02" / "n02_3.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"n02_3.JPEG: cannot be decoded .*restore or remove"):
        list(source.epoch(0))
