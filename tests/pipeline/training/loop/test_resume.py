"""A checkpoint with other inputs is set aside and never lost, and the log says why."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.files import DamagedFileError, load_tree, save_tree
from pipeline.training.loop.checkpoint import CheckpointFolder, Lineage, retire
from pipeline.training.loop.fit import fit
from tests.pipeline.training.toy import RECIPE, KillAt, Killed, Recorder, job

INPUTS: dict[str, Any] = {"recipe": {"lr": 0.1}, "code": {"fit.py": "a", "x.py": "b"}, "seed": 0}
OTHER_CODE = {**INPUTS, "code": {"fit.py": "z", "x.py": "b"}}
OTHER_RATE = {**INPUTS, "recipe": {"lr": 0.2}}


def steps_left(folder: Path, inputs: Any, until: int = 99) -> int:
    """Train, killed after `until` steps; returns how many steps were taken."""
    batches = KillAt(until)
    try:
        fit(job(train=batches), CheckpointFolder(folder, inputs), Recorder())
    except Killed:
        return until
    return until - batches.left


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A training that was killed in its third epoch of four, three steps each."""
    folder = tmp_path / "a"
    steps_left(folder, INPUTS, until=7)
    return folder


def test_a_change_of_code_sets_the_checkpoint_aside_and_is_named(
    interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (interrupted / "last.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "espalier"):
        assert steps_left(interrupted, OTHER_CODE, until=4) == 4
    kept = interrupted.with_name("a.set-aside-1")
    assert (kept / "last.safetensors").read_bytes() == before
    assert "fit.py" in caplog.text
    assert "x.py" not in caplog.text
    assert f"ESPALIER_RESUME={kept}" in caplog.text


def test_a_changed_setting_is_named_with_both_values(
    interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "espalier"):
        CheckpointFolder(interrupted, OTHER_RATE)
    assert "recipe.lr (0.1 -> 0.2)" in caplog.text


def test_inputs_put_back_resume_what_was_set_aside(interrupted: Path) -> None:
    steps_left(interrupted, OTHER_RATE, until=4)  # it has a checkpoint of its own by now
    assert steps_left(interrupted, INPUTS) == 6
    assert [p.name for p in interrupted.parent.iterdir() if p.name != "a"] == ["a.set-aside-2"]


@pytest.mark.parametrize("already_begun", [False, True])
def test_a_harmless_change_of_code_can_be_accepted(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch, already_begun: bool
) -> None:
    chosen = interrupted
    if already_begun:
        steps_left(interrupted, OTHER_CODE, until=4)
        chosen = interrupted.with_name("a.set-aside-1")
    monkeypatch.setenv("ESPALIER_RESUME", str(chosen))
    steps_left(interrupted, OTHER_CODE, until=4)  # killed again, in the last epoch
    assert steps_left(interrupted, OTHER_CODE) == 3


def test_a_changed_setting_cannot_be_accepted(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_RESUME", str(interrupted))
    with pytest.raises(ValueError, match=r"recipe\.lr \(0\.1 -> 0\.2\); put them back"):
        CheckpointFolder(interrupted, OTHER_RATE)
    assert steps_left(interrupted, INPUTS) == 6


def test_another_trainings_checkpoint_is_not_taken(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_RESUME", str(interrupted))
    assert steps_left(interrupted.with_name("b"), OTHER_CODE) == 12
    monkeypatch.setenv("ESPALIER_RESUME", str(interrupted.with_name("a.set-aside-9")))
    with pytest.raises(ValueError, match=r"no checkpoint in .*a\.set-aside-9 \(set aside: none\)"):
        CheckpointFolder(interrupted, OTHER_CODE)


@pytest.mark.parametrize("damage", ["{", None, "[]"])
def test_damaged_inputs_are_named_and_the_checkpoint_is_kept(
    interrupted: Path, damage: str | None, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = interrupted / "inputs.json"
    path.unlink() if damage is None else path.write_text(damage)
    with caplog.at_level(logging.WARNING, "espalier"):
        CheckpointFolder(interrupted, INPUTS)
    assert "inputs.json is missing or damaged" in caplog.text
    monkeypatch.setenv("ESPALIER_RESUME", str(interrupted.with_name("a.set-aside-1")))
    assert steps_left(interrupted, INPUTS) == 6


def test_a_folder_without_a_checkpoint_is_not_worth_keeping(tmp_path: Path) -> None:
    steps_left(tmp_path / "a", INPUTS, until=2)
    CheckpointFolder(tmp_path / "a", OTHER_CODE)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_end_of_a_training_leaves_what_is_set_aside(
    interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps_left(interrupted, OTHER_RATE)
    with caplog.at_level(logging.INFO, "espalier"):
        retire(interrupted)
    assert [p.name for p in interrupted.parent.iterdir()] == ["a.set-aside-1"]
    assert "delete if not needed: " in caplog.text


def test_what_a_killed_write_left_is_swept(interrupted: Path) -> None:
    left = [interrupted / ".last.safetensors.1.tmp", interrupted / "snapshots/.init.2.tmp"]
    for path in left:
        path.write_bytes(b"half")
    CheckpointFolder(interrupted, INPUTS)
    assert not any(path.exists() for path in left)
    assert (interrupted / "last.safetensors").exists()


def test_a_missing_snapshot_is_refused_by_name(interrupted: Path) -> None:
    (interrupted / "snapshots/init.safetensors").unlink()
    with pytest.raises(DamagedFileError, match=r"init\.safetensors: missing.*delete"):
        steps_left(interrupted, INPUTS)


def test_a_missing_state_of_an_epoch_is_refused_before_the_training_goes_on(
    tmp_path: Path,
) -> None:
    made = job(recipe=RECIPE.model_copy(update={"keep_epochs": (1,)}), train=KillAt(7))
    with pytest.raises(Killed):
        fit(made, CheckpointFolder(tmp_path, "x"), Recorder())
    (tmp_path / "epochs/1.safetensors").unlink()
    again = job(recipe=made.recipe, train=KillAt(0))
    with pytest.raises(DamagedFileError, match=r"epochs/1\.safetensors: missing.*delete"):
        fit(again, CheckpointFolder(tmp_path, "x"), Recorder())


@pytest.mark.parametrize("name", ["snapshots/init", "epochs/1"])
def test_a_damaged_state_is_refused_before_the_training_goes_on(tmp_path: Path, name: str) -> None:
    made = job(recipe=RECIPE.model_copy(update={"keep_epochs": (1,)}), train=KillAt(7))
    with pytest.raises(Killed):
        fit(made, CheckpointFolder(tmp_path, "x"), Recorder())
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    again = job(recipe=made.recipe, train=KillAt(0))
    with pytest.raises(DamagedFileError, match=rf"{name}\.safetensors: damaged.*delete {tmp_path}"):
        fit(again, CheckpointFolder(tmp_path, "x"), Recorder())


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_lineage_extends_nothing_and_is_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps_left(tmp_path / "a", INPUTS)
    (tmp_path / "a/finished.json").write_text(damage)
    folder = CheckpointFolder(tmp_path / "a", INPUTS, lineage=Lineage("x", 2))
    assert not folder.extended
    assert folder.load() is None
    assert "finished.json: damaged" in caplog.text


def test_an_observer_that_lost_the_past_hears_it_again(interrupted: Path) -> None:
    class Forgetful(Recorder):
        def begin(self, offset: int = 0) -> bool:
            super().begin(0)
            return offset > 0

    seen = Forgetful()
    fit(job(), CheckpointFolder(interrupted, INPUTS), seen)
    assert [epoch for epoch, _, _ in seen.rows] == [0, 1, 2, 3]


def test_inputs_are_readable_names(interrupted: Path) -> None:
    found = json.loads((interrupted / "inputs.json").read_text())
    assert found == {"code.fit.py": '"a"', "code.x.py": '"b"', "recipe.lr": "0.1", "seed": "0"}


def test_a_snapshot_that_cannot_be_written_says_that_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tree: Any) -> None:
        raise OSError(28, f"{path}: the disk is full (0.0 MB free)")

    folder = CheckpointFolder(tmp_path, "x")
    save_tree(folder.last, {"w": torch.ones(1)})
    monkeypatch.setattr("pipeline.training.loop.checkpoint.save_tree", full)
    with pytest.raises(OSError, match=r"init\.safetensors.*the previous checkpoint is intact"):
        folder.snapshot("init", {"w": torch.ones(1)})
    assert load_tree(folder.last)["w"] == 1
