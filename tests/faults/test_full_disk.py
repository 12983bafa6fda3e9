"""A disk that fills at any write of prune, finetune or evaluate: one line, every file old or new.

The disk here is a count of writes. `make faults` fills a real one, under every stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import stages.evaluate
import stages.finetune
import stages.prune
import stages.train
from pipeline.data.prepare import prepare
from pipeline.study import paths
from pipeline.study.params.load import load_params
from tests import study

PARAMS = study.PARAMS.replace("root: .", f"root: {study.REPOSITORY}").replace(
    "limit: 200", "limit: 120"
)
STAGES = {"prune": stages.prune, "finetune": stages.finetune, "evaluate": stages.evaluate}
KEPT = ("artifacts/prune", "artifacts/finetune", "artifacts/train", "reports")


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
    """A study, its training and a first pruning of it, all stages done."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        ready(monkeypatch, folder)
        (folder / "params.yaml").write_text(PARAMS)
        prepare(load_params().file.data, paths.PREPARED)
        run(stages.train, "--training", "a")
        for stage in STAGES.values():
            run(stage)
    return folder


def ready(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ESPALIER_MLFLOW", "off")
    monkeypatch.delenv("ESPALIER_DEBUG", raising=False)
    for module in (stages.train, stages.finetune):  # seconds, and not what is tested
        for name in {"loop_code", "method_code", "code_digest"} & vars(module).keys():
            monkeypatch.setattr(module, name, lambda *_: {})


def run(module: Any, option: str = "--pruning", key: str = "a-p50", code: int = 0) -> Result:
    result = CliRunner().invoke(module.main, [option, key])
    assert result.exit_code == code, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {f"{k}/{name}": data for k in KEPT for name, data in study.tree(folder / k).items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_at_any_write(
    stage: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruning is asked again with another target, so that every file has an old content."""
    for name in ("expected", "hit"):
        shutil.copytree(original, tmp_path / name)
        ready(monkeypatch, tmp_path / name)
        study.edit(tmp_path / name, {"value: 0.5": "value: 0.6"})
        for earlier in list(STAGES)[: list(STAGES).index(stage)]:
            run(STAGES[earlier])
    before = files(tmp_path / "hit")
    disk = Disk(monkeypatch)
    monkeypatch.chdir(tmp_path / "expected")
    run(STAGES[stage])
    expected, writes = files(tmp_path / "expected"), disk.writes
    assert writes > 2
    monkeypatch.chdir(tmp_path / "hit")
    for room in range(writes):
        disk.hold(10**9)
        shutil.rmtree(".checkpoints")  # or the next attempt resumes, with fewer writes
        disk.hold(room)
        said = run(STAGES[stage], code=1).output.strip().splitlines()
        assert said[-1].startswith("error: [Errno 28] "), said
        assert "full" in said[-1] or "No space left" in said[-1]
        assert len([line for line in said if "rror" in line]) == 1, said
        found = files(tmp_path / "hit")
        assert not [name for name in found if name.endswith(".tmp")]
        assert before.keys() <= found.keys() <= expected.keys() | before.keys()
        for name, data in found.items():
            assert data in (before.get(name), expected[name]), f"{name} after {room} writes"
    disk.hold(10**9)
    run(STAGES[stage])
    assert files(tmp_path / "hit") == expected
