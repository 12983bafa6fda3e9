"""The studies that need ImageNet, by `dvc repro` from images to tables, on a generated one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.prepared import load_prepared
from pipeline.files import load_tree
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import load_params
from pipeline.study.records.record import TrainRecord, read_record, sha
from pipeline.training.loop.job import Silent
from stages import train
from tests import imagenet_dry_run as dry_run
from tests import study

pytestmark = pytest.mark.slow

KILLED = "imagenet-mobilenet-v2-gates-s0"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "oto-imagenet": (
        "imagenet-resnet50-hspg-s2-zeros",
        {"trainings.imagenet-resnet50-hspg-s2.model.width": 8},
    ),
    "pfs-imagenet/resnet50": (
        "imagenet-resnet50-gates-s0-p50",
        {
            "trainings.imagenet-resnet50-gates-s0.model.width": 20,
            "prunings.imagenet-resnet50-gates-s0-p50.reference.width": 16,
            "prunings.imagenet-resnet50-gates-s0-p50.finetune.epochs": 0,
        },
    ),
    "pfs-imagenet/mobilenet": (
        f"{KILLED}-p50",
        {
            f"trainings.{KILLED}.model.width": 10,
            f"prunings.{KILLED}-p50.reference.width": 8,
            "train.batch_size": 2,  # 20 steps with checkpoints: the kill comes before the last
        },
    ),
}
"""Of each study the pruning that is run, and the widths a CPU has time for."""


SHORT = "pfs-imagenet/resnet50"  # its retraining and its report are those of the other part
PRUNED = ("prune", "finetune", "evaluate")


@pytest.fixture(scope="module")
def without_mirror() -> Iterator[None]:
    """What a report publishes need not be mirrored while it happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPALIER_MLFLOW", "off")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, without_mirror: None) -> Path:
    """A copy of the repository with the rows done; one training was killed inside an epoch."""
    folder = tmp_path_factory.mktemp("dry") / "repository"
    for name, (pruning, narrow) in ROWS.items():
        dry_run.place(folder, name, [pruning], **narrow)
    kill_inside_an_epoch(folder, "pfs-imagenet/mobilenet")
    for name, (pruning, _) in ROWS.items():
        last = f"evaluate@{pruning}" if name == SHORT else "report"
        ran = dry_run.repro(folder, name, last)
        expected = [*(f"{stage}@{pruning}" for stage in PRUNED), "report"]
        assert ran[-(4 if last == "report" else 3) :] == expected[: expected.index(last) + 1]
    return folder


def kill_inside_an_epoch(folder: Path, name: str) -> None:
    """`kill -9` DVC during the first epoch, after a checkpoint; nothing of it may go on."""
    home = folder / "studies" / name
    process = subprocess.Popen(
        ["dvc", "repro", f"train@{KILLED}"],
        cwd=home,
        env=study.environment(home, cold=True) | {"SHELL": "/bin/sh"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = home / ".checkpoints/train" / KILLED / "last.safetensors"
    for _ in range(30_000):  # five minutes: the machine may be busy
        if checkpoint.exists():
            break
        assert process.poll() is None, "it ended without a checkpoint"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    study.wait_until_free(home, f"train@{KILLED}")
    assert not (home / "artifacts/train" / KILLED).exists(), "it ended although DVC was killed"
    assert load_tree(checkpoint)["counters"]["step_in_epoch"] > 0


@pytest.mark.parametrize("name", ROWS)
def test_a_row_goes_from_images_to_a_table(finished: Path, name: str) -> None:
    home, pruning = finished / "studies" / name, ROWS[name][0]
    record = json.loads((home / f"reports/records/evaluate/{pruning}.json").read_text())
    assert 0 < record["counts"]["params_kept"] < record["counts"]["params_dense"]
    assert record["exactness"]["masked"]["max_rel"] < 1e-5
    assert record["input_shape"] == [3, 32, 32]
    assert "top5" in record["final"]
    if name != SHORT:
        assert pruning in (home / "reports/tables/main.md").read_text()


def test_the_killed_training_ends_as_one_that_was_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = finished / "studies/pfs-imagenet/mobilenet"
    resumed = study.tree(home / "artifacts/train" / KILLED)
    record = read_record(TrainRecord, home / f"reports/records/train/{KILLED}.json")
    events = (home / f"artifacts/events/train/{KILLED}.jsonl").read_text()
    assert '"resumed"' in events
    shutil.rmtree(home / "artifacts/train")
    monkeypatch.chdir(home)
    place = Workplace(torch.device("cpu"), tmp_path / "checkpoints")
    again = train.run(load_params(), KILLED, load_prepared(paths.PREPARED), place, Silent())
    assert sha(again) == sha(record)
    assert study.tree(home / "artifacts/train" / KILLED) == resumed
