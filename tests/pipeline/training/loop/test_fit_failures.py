"""Losses that are not finite, full disks, damaged checkpoints: what is left and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from pipeline.files import DamagedFileError
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.finite import DivergedError
from pipeline.training.method import MethodBase
from pipeline.training.phases import StepContext
from tests.pipeline.training.toy import (
    RECIPE,
    KillAt,
    Killed,
    job,
    same,
    train,
)


class Diverges(MethodBase):
    """Poisons the loss in step 4 of the training (epoch 1, step 1)."""

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        if at.step == 3:
            with torch.no_grad():
                model[0].weight.fill_(float("nan"))


@pytest.mark.parametrize("every", [0, 1])
def test_a_loss_that_is_not_finite_stops_and_names_the_way_back(tmp_path: Path, every: int) -> None:
    recipe = RECIPE.model_copy(update={"checkpoint_steps": every})
    with pytest.raises(DivergedError, match=r"epoch 1, step 1.*last good checkpoint: .*last\.safe"):
        train(tmp_path, job(Diverges(), recipe))
    saved = CheckpointFolder(tmp_path, "x").load()
    assert all(torch.isfinite(v).all() for v in saved["model"].values() if v.is_floating_point())


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, job(train=KillAt(4)))
    before = (tmp_path / "last.safetensors").read_bytes()

    def full(tensors: Any, path: str, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half a file")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    wanted = (
        r"last\.safetensors: the disk is full \([\d.]+ MB free\); the previous checkpoint is in"
    )
    with pytest.raises(OSError, match=wanted) as caught:
        train(tmp_path, job())
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "inputs.json",
        "last.safetensors",
        "snapshots",
    ]
    monkeypatch.undo()
    model, _, _ = train(tmp_path, job())
    assert same(model, train(tmp_path / "undisturbed", job())[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Killed):
        train(tmp_path, job(train=KillAt(4)))
    path = tmp_path / "last.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"last\.safetensors.*delete"):
        train(tmp_path, job())
