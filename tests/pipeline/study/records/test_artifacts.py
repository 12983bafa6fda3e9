"""A state of another training or study is refused by name, wherever it is put."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.files import DamagedFileError, save_tree, tensors_sha256, write_json
from pipeline.study.records.artifacts import TrainArtifact
from pipeline.study.records.record import TrainRecord
from tests.reports.samples import train_record


def states(seed: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {"weight": torch.randn(3, 4, generator=generator)} for name in ("final", "epoch-1")
    }


def left(folder: Path, seed: int) -> tuple[TrainArtifact, TrainRecord]:
    """What a training leaves, and its record."""
    record = replace(
        train_record(seed=0),
        training="a",
        weights_sha=tensors_sha256(states(seed)["final"]),
    )
    family, name = record.model.split("/")
    spec = {"training": "a", "method": record.method, "seed": 0}
    write_json(folder / "spec.json", spec | {"network": {"family": family, "name": name}})
    artifact = TrainArtifact(folder)
    for state, weights in states(seed).items():
        artifact.write_state(state, weights, None)
    return artifact, record


def test_its_own_states_are_read(tmp_path: Path) -> None:
    artifact, record = left(tmp_path / "a", 0)
    artifact.require(record)
    for state, weights in states(0).items():
        assert torch.equal(artifact.weights(state)["weight"], weights["weight"])


@pytest.mark.parametrize("state", ["final", "epoch-1"])
def test_a_state_of_another_study_is_refused(tmp_path: Path, state: str) -> None:
    """Same network, same names and shapes: nothing but its hash tells."""
    artifact, record = left(tmp_path / "a", 0)
    other, _ = left(tmp_path / "other/a", 1)
    shutil.copy(other.folder / state / "model.safetensors", artifact.folder / state)
    with pytest.raises(DamagedFileError, match=f"a/{state}/model.safetensors: not the weights that "
                       f"this training left as '{state}'.*dvc repro --force train@a"):  # fmt: skip
        artifact.weights(state)


def test_a_state_that_this_training_does_not_leave_is_refused(tmp_path: Path) -> None:
    artifact, _ = left(tmp_path / "a", 0)
    save_tree(artifact.folder / "best/model.safetensors", states(0)["final"])
    with pytest.raises(DamagedFileError, match="best/model.safetensors: not the weights"):
        artifact.weights("best")


def test_the_artefact_of_another_study_is_refused_whole(tmp_path: Path) -> None:
    _, record = left(tmp_path / "a", 0)
    other, _ = left(tmp_path / "other/a", 1)
    with pytest.raises(DamagedFileError, match="final/model.safetensors: not the weights that the "
                       "record of 'a' cites: of another study"):  # fmt: skip
        other.require(record)


@pytest.mark.parametrize("change", [{"seed": 1}, {"method": "dense"}, {"training": "b"}])
def test_the_artefact_of_another_training_is_refused(tmp_path: Path, change: dict) -> None:
    artifact, record = left(tmp_path / "a", 0)
    with pytest.raises(DamagedFileError, match=r"a/spec\.json: of \('a', .*, its record of \("):
        artifact.require(replace(record, **change))
