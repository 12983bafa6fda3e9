"""Rewinding to an optimizer step, also in the middle of an epoch. (Resume: test_fit.py.)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.method import MethodBase
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe
from tests.pipeline.training.loop.test_fit import first_forward_of
from tests.pipeline.training.toy import RECIPE, Batches, KillAt, Killed, job, network, train


def mid_epoch(step: int = 4, **more: Any) -> Recipe:
    """RECIPE that rewinds to a step, by default in the middle of epoch 1 of three steps each."""
    return RECIPE.model_copy(update={"rewind_epoch": 0, "rewind_step": step, **more})


@pytest.mark.parametrize("step", [0, 3, 4, 5])
def test_rewind_snapshot_is_the_state_after_that_step(tmp_path: Path, step: int) -> None:
    every = RECIPE.model_copy(update={"checkpoint_steps": 1})
    with pytest.raises(Killed):
        train(tmp_path / "killed", job(recipe=every, train=KillAt(step)))
    train(tmp_path / "whole", job(recipe=mid_epoch(step)))
    kept = load_tree(tmp_path / "whole" / "snapshots" / "rewind.safetensors")["model"]
    if step == 0:
        wanted = clone_state(network())
    else:
        wanted = CheckpointFolder(tmp_path / "killed", "x").load()["model"]
    assert all(torch.equal(kept[k], wanted[k]) for k in wanted)


class Watched(Batches):
    """Batches that remember which steps of which epochs they were asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step, batch in enumerate(super().epoch(epoch, start_step), start_step):
            self.seen.append((epoch, step))
            yield batch


class ToTheStep(MethodBase):
    """Trains, rewinds as the recipe says, and trains the rest of the recipe."""

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        k = recipe.rewind_epoch
        return (Phase("a", recipe.epochs), Phase("b", recipe.epochs - k, "rewind", k))


def test_a_phase_that_starts_at_a_step_goes_on_from_there(tmp_path: Path) -> None:
    """Step 4 of 12 is step 1 of epoch 1, so two steps of the epoch remain, at its learning rate."""
    watched = Watched()
    made = job(ToTheStep(), mid_epoch(), train=watched)
    seen = first_forward_of(made.model, call=12)
    _, _, curve = train(tmp_path, made)
    rewind = load_tree(tmp_path / "snapshots" / "rewind.safetensors")["model"]
    assert all(torch.equal(v, rewind[k]) for k, v in seen[0].items())
    second = [at for at in watched.seen if at[0] >= 4]
    assert second == [(4, 1), (4, 2), *((e, s) for e in (5, 6) for s in range(3))]
    assert [row["step"] for row in curve] == [3, 6, 9, 12, 14, 17, 20]
    assert [row["values"]["examples"] for row in curve] == [24, 48, 72, 96, 112, 136, 160]
    rates = [row["values"]["lr"] for row in curve]
    assert rates[4:] == rates[1:4]


def test_only_one_rewind_is_said() -> None:
    with pytest.raises(ValueError, match="rewind_step: 4 and rewind_epoch: 1 exclude each other"):
        Recipe(epochs=4, rewind_epoch=1, rewind_step=4)
