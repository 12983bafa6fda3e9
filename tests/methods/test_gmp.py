"""Gradual magnitude pruning: the curve of Zhu & Gupta, exact counts, permanent zeros."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from methods.gmp import GMP, GMPConfig, cubic_sparsity
from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.phases import EpochStats, Phase
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units
from tests.pipeline.training.toy import RECIPE, Batches, Recorder, job, same

SIZES = {"0.weight": 48, "4.weight": 24}  # of the toy network


def test_the_curve_of_equation_1() -> None:
    """s_f = 0.9: a quarter, half and three quarters of the way, by hand."""
    found = [cubic_sparsity(p, 0.0, 0.9) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.0, 0.5203125, 0.7875, 0.8859375, 0.9], abs=1e-12)
    assert cubic_sparsity(0.5, 0.4, 0.8) == pytest.approx(0.8 - 0.4 / 8)
    assert cubic_sparsity(-1.0, 0.4, 0.8) == pytest.approx(0.4)
    assert cubic_sparsity(2.0, 0.4, 0.8) == 0.8


def masks(config: GMPConfig, epochs: int) -> list[dict[str, torch.Tensor]]:
    """The mask before training and after every epoch; weights change in between."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 10, 3), nn.Conv2d(10, 20, 1), nn.Linear(5, 8))
    method = GMP(config)
    recipe = Recipe(epochs=epochs)
    (phase,) = method.phases(recipe)
    method.prepare(net, Units(("0.weight", "1.weight", "2.weight"), ()))
    method.optimizer(net, phase, recipe)
    seen = [dict(method.keep)]
    for epoch in range(epochs):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        assert not method.end_epoch(net, EpochStats(epoch, epoch, {}))
        seen.append(dict(method.keep))
    return seen


def sparsities(seen: list[dict[str, torch.Tensor]], name: str) -> list[float]:
    return [1.0 - float(m[name].float().mean()) for m in seen]


def test_masks_follow_the_curve_layer_by_layer() -> None:
    config = GMPConfig(begin_epoch=1, end_epoch=5, final_sparsity=0.8)
    seen = masks(config, epochs=6)
    for name, size in (("0.weight", 180), ("1.weight", 200), ("2.weight", 40)):
        wanted = [0, 0, *(0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)), 0.8]
        kept = [int((1 - s) * size + 1e-6) for s in wanted]
        assert [int(m[name].sum()) for m in seen] == kept


def test_a_frequency_skips_updates_but_not_the_last() -> None:
    seen = masks(GMPConfig(end_epoch=5, frequency=2, final_sparsity=0.8), epochs=6)
    found = sparsities(seen, "1.weight")
    assert found[1] == 0.0
    assert found[2] == found[3] == pytest.approx(0.8 * (1 - 0.6**3), abs=1 / 200)
    assert found[4] < found[5] == found[6] == pytest.approx(0.8)


def test_an_initial_sparsity_holds_from_the_first_step() -> None:
    seen = masks(GMPConfig(initial_sparsity=0.5, final_sparsity=0.75), epochs=4)
    assert sparsities(seen, "1.weight")[0] == 0.5
    assert sparsities(seen, "1.weight")[-1] == 0.75


@settings(max_examples=20, deadline=None)
@given(
    allocation=st.sampled_from(["uniform", "global", "erk"]),
    final=st.floats(0.1, 0.95),
    frequency=st.integers(1, 4),
)
def test_removed_weights_stay_removed(allocation: Any, final: float, frequency: int) -> None:
    config = GMPConfig(allocation=allocation, final_sparsity=final, frequency=frequency)
    seen = masks(config, epochs=6)
    for before, after in zip(seen, seen[1:], strict=False):
        assert not any((after[n] & ~before[n]).any() for n in before)
    total = sum(m.numel() for m in seen[-1].values())
    removed = total - sum(int(m.sum()) for m in seen[-1].values())
    assert removed == pytest.approx(final * total, abs=3)


def gradual(**recipe: Any) -> Job:
    """The toy problem; the last mask is drawn after the last epoch."""
    made = job(GMP(GMPConfig(end_epoch=4, final_sparsity=0.75)))
    return replace(made, recipe=RECIPE.model_copy(update=recipe))


class _Stop(BaseException):
    pass


class _StopIn(Batches):
    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        if epoch == self.at:
            raise _Stop
        return super().epoch(epoch, start_step)


def test_a_plan_tightened_after_an_epoch_holds_at_once(tmp_path: Path) -> None:
    """In the network, its average and every named state, also after a resume."""
    whole = gradual(ema_decay=0.5, keep_epochs=(1, 2, 3))
    fit(whole, CheckpointFolder(tmp_path / "whole", "x"), Recorder())
    for name, size in SIZES.items():
        assert int((whole.model.get_parameter(name) == 0).sum()) == size * 3 // 4
    states = CheckpointFolder(tmp_path / "whole", "x").snapshots()
    for state in ("ema", "epoch-1", "epoch-2", "epoch-3"):
        tree = load_tree(states[state])
        for name, mask in tree["method"]["keep"].items():
            assert not tree["model"][name][~mask].any(), f"{state}: {name}"
    for epoch in (1, 2, 3):
        folder = tmp_path / str(epoch)
        with pytest.raises(_Stop):
            fit(
                replace(gradual(ema_decay=0.5), train=_StopIn(epoch)),
                CheckpointFolder(folder, "x"),
                Recorder(),
            )
        again = gradual(ema_decay=0.5)
        fit(again, CheckpointFolder(folder, "x"), Recorder())
        assert same(again.model, whole.model), f"resumed in epoch {epoch}"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="initial_sparsity: 0.9 is above"):
        GMPConfig(initial_sparsity=0.9, final_sparsity=0.5)
    with pytest.raises(ValidationError, match="end_epoch: 3 is not after begin_epoch: 3"):
        GMPConfig(begin_epoch=3, end_epoch=3)
    with pytest.raises(ValueError, match=r"after 9 epochs and train.epochs is 4"):
        GMP(GMPConfig(end_epoch=9)).phases(Recipe(epochs=4))
    assert GMP(GMPConfig()).phases(Recipe(epochs=1)) == (Phase("train", 1),)
