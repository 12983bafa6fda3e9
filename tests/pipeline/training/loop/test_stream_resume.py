"""A training on a streamed folder of images that is killed inside an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.data.batches import WHOLE, Part, Placement
from pipeline.data.config import DataConfig
from pipeline.data.loaders import make_train_batches
from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.job import Job
from pipeline.units.groups import Units
from tests.pipeline.training.toy import RECIPE, Killed, job, same, train

STEPS = 6  # 18 images in batches of 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label in ("n01", "n02", "n03"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.JPEG")
    augment = ["random_resized_crop", "color_jitter", "flip"]
    config = DataConfig(name="imagefolder", root=str(folder), size=16, augment=augment)
    prepare(config, folder / "prepared")
    return load_prepared(folder / "prepared")


class Counted:
    """Batches that count the steps they gave, and end the process before one of them."""

    def __init__(self, inner: Any, stop: int = -1) -> None:
        self.inner, self.stop, self.given = inner, stop, 0

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Any:
        for batch in self.inner.epoch(epoch, start_step, part):
            if self.given == self.stop:
                raise Killed
            self.given += 1
            yield batch


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), *head)


def made(prepared: Prepared, workers: int, stop: int = -1) -> tuple[Job, Counted]:
    source = make_train_batches(
        prepared, batch_size=3, seed=1, placement=Placement(workers=workers)
    )
    counted = Counted(source, stop)
    recipe = RECIPE.model_copy(update={"epochs": 2, "checkpoint_steps": 2})
    units = Units(("0.weight",), ())
    return job(recipe=recipe, model=network(), train=counted, validation=None, units=units), counted


# Python 3.12 warns of any fork in a process with threads; the workers touch none of them.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [5, 9])
def test_a_killed_run_loses_at_most_two_steps(
    prepared: Prepared, tmp_path: Path, workers: int, stop: int
) -> None:
    whole, _ = made(prepared, 0)
    undisturbed, _, curve = train(tmp_path / "undisturbed", whole)
    killed, _ = made(prepared, workers, stop)
    with pytest.raises(Killed):
        train(tmp_path / "killed", killed)
    saved = CheckpointFolder(tmp_path / "killed", "x").load()["counters"]
    assert saved["step"] == stop // 2 * 2
    assert saved["step_in_epoch"] == saved["step"] % STEPS
    again, counted = made(prepared, workers)
    model, _, resumed = train(tmp_path / "killed", again)
    assert counted.given == 2 * STEPS - stop // 2 * 2
    assert same(model, undisturbed)
    assert resumed == curve
