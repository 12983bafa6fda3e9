"""A disk that fills at any write of a stage: one line, every file old or new. Checkpoints on a disk
of their own.

The full disk here is a count of writes. `make faults` fills a real one, under every stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import stages.connect
import stages.evaluate
import stages.finetune
import stages.prune
import stages.sweep
import stages.train
from pipeline.data.prepare import prepare
from pipeline.study import paths
from pipeline.study.params.load import load_params
from pipeline.training.loop.checkpoint import CheckpointFolder
from tests import study
from tests.faults.disks import small_file_system

PARAMS = study.PARAMS.replace("root: .", f"root: {study.REPOSITORY}").replace(
    "limit: 200", "limit: 120"
)
PARAMS += """connect:
  pairs: {l: {one: {training: a, at: init}, other: {training: a}}}
  points: 3
  recalibration_batches: 2
"""
STAGES = {
    "train": (stages.train, "--training", "a"),
    "prune": (stages.prune, "--pruning", "a-p50"),
    "finetune": (stages.finetune, "--pruning", "a-p50"),
    "evaluate": (stages.evaluate, "--pruning", "a-p50"),
    "sweep": (stages.sweep, "--training", "a"),
    "connect": (stages.connect, "--pair", "l"),
}
EDITS = {"train": ("lr: 0.05", "lr: 0.06"), "sweep": ("[0.5, 0.9]", "[0.6]"),
         "connect": ("points: 3", "points: 4")}  # fmt: skip
OTHER_TARGET = ("value: 0.5", "value: 0.6")
FIRST = {"finetune": ("prune",), "evaluate": ("prune", "finetune")}
EVERY = {"train": 5}  # it writes often
GROWING = (".jsonl", "/states.json")  # DVC deletes them before a stage runs
KEPT = ("artifacts/prune", "artifacts/finetune", "artifacts/train", "artifacts/events", "reports")


class Disk:
    """Counts writes: syncs of finished files, and lines of an event file. Full after `room`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.room = 0, 10**9
        sync, opened = os.fsync, Path.open

        def full_sync(file: int) -> None:
            self.spend()
            sync(file)

        def full_open(path: Path, mode: str = "r", *more: Any, **settings: Any) -> Any:
            file = opened(path, mode, *more, **settings)
            return _File(file, self) if mode == "ab" else file

        monkeypatch.setattr(os, "fsync", full_sync)
        monkeypatch.setattr(Path, "open", full_open)

    def spend(self) -> None:
        self.writes += 1
        if self.writes > self.room:
            raise OSError(28, "No space left on device")

    def hold(self, room: int) -> None:
        self.writes, self.room = 0, room


class _File:
    """A file whose lines are written to the disk at once."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._disk.spend()
        return self._file.write(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study, its training and what is made of it, all stages done."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        ready(monkeypatch, folder)
        (folder / "params.yaml").write_text(PARAMS)
        prepare(load_params().file.data, paths.PREPARED)
        for stage in STAGES:
            run(stage)
    return folder


def ready(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ESPALIER_MLFLOW", "off")
    monkeypatch.delenv("ESPALIER_DEBUG", raising=False)
    for module in (stages.train, stages.finetune):  # the digests take seconds
        for name in {"loop_code", "method_code", "code_digest"} & vars(module).keys():
            monkeypatch.setattr(module, name, lambda *_: {})


def run(stage: str, code: int = 0) -> Result:
    module, *instance = STAGES[stage]
    result = CliRunner().invoke(module.main, instance)
    assert result.exit_code == code, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {f"{k}/{name}": data for k in KEPT for name, data in study.tree(folder / k).items()}


def results(folder: Path) -> dict[str, bytes]:
    """Without the event files, which hold times."""
    return {name: data for name, data in files(folder).items() if "/events/" not in name}


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_at_any_write(
    stage: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is asked for something else, so that every file has an old content."""
    for name in ("expected", "hit"):
        shutil.copytree(original, tmp_path / name)
        ready(monkeypatch, tmp_path / name)
        study.edit(tmp_path / name, dict([EDITS.get(stage, OTHER_TARGET)]))
        for earlier in FIRST.get(stage, ()):
            run(earlier)
    before = files(tmp_path / "hit")
    disk = Disk(monkeypatch)
    monkeypatch.chdir(tmp_path / "expected")
    run(stage)
    expected, writes = files(tmp_path / "expected"), disk.writes
    assert writes > 2
    monkeypatch.chdir(tmp_path / "hit")
    for room in range(0, writes, EVERY.get(stage, 1)):
        disk.hold(10**9)
        shutil.rmtree(".checkpoints")  # or the next attempt resumes, with fewer writes
        disk.hold(room)
        said = run(stage, code=1).output.strip().splitlines()
        assert said[-1].startswith("error: [Errno 28] "), said
        assert "full" in said[-1] or "No space left" in said[-1]
        assert len([line for line in said if "rror" in line]) == 1, said
        found = files(tmp_path / "hit")
        assert not [name for name in found if name.endswith(".tmp")]
        assert before.keys() <= found.keys() <= expected.keys() | before.keys()
        for name, data in found.items():
            either = (before.get(name), expected[name])
            assert data in either or name.endswith(GROWING), f"{name} after {room} writes"
    disk.hold(10**9)
    run(stage)
    assert results(tmp_path / "hit") == results(tmp_path / "expected")


class Killed(BaseException):
    """Stands for `kill -9`."""


def kill_at(monkeypatch: pytest.MonkeyPatch, checkpoint: int) -> None:
    """End the process when it would write this checkpoint of a training."""
    save, left = CheckpointFolder.save, [checkpoint]

    def dying(folder: CheckpointFolder, tree: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed
        save(folder, tree)

    monkeypatch.setattr(CheckpointFolder, "save", dying)


def test_checkpoints_on_another_file_system(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, kill, resume, prune, retrain, kill, resume, evaluate: the bytes of one file system."""
    ready(monkeypatch, tmp_path)
    shutil.copytree(original / "data", "data")
    shutil.copy(original / "params.yaml", ".")
    disk = Path(".checkpoints")
    disk.mkdir()
    with small_file_system(disk, "4m"):
        assert disk.stat().st_dev != Path().stat().st_dev
        for stage, checkpoint in (("train", 2), ("finetune", 1)):
            with monkeypatch.context() as once:
                kill_at(once, checkpoint)
                with pytest.raises(Killed):
                    run(stage)
            assert list(disk.glob(f"{stage}/*/snapshots/init.safetensors"))
            assert list(disk.glob(f"{stage}/*.events.jsonl"))
            run(stage)
            assert not [p for p in (disk / stage).iterdir() if p.suffix != ".log"]
            if stage == "train":
                run("prune")
        for stage in ("evaluate", "sweep", "connect"):
            run(stage)
    assert results(tmp_path) == results(original)
    assert {p.name for p in Path("artifacts/events/train").iterdir()} == {"a.jsonl"}
