"""HESSO-CRIC in a training: its timetable, the loss it is given, and resuming when killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.hesso_cric import HESSOCRICConfig, HESSOCRICMethod, timetable
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.phases import EpochStats, StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units
from tests.conformance.test_methods import RECIPE, Batches, Stopped, make_job
from tests.methods.oto.oto_traces import plain_group
from tests.pipeline.training.toy import Recorder, same


@given(
    total=st.integers(3, 5000),
    tried=st.integers(0, 40),
    start=st.floats(0, 0.4),
    cycle=st.floats(0, 0.3),
    shrink=st.floats(0, 0.3),
)
def test_the_timetable_fits_into_the_training(
    total: int, tried: int, start: float, cycle: float, shrink: float
) -> None:
    config = HESSOCRICConfig(start_fraction=start, cycle_fraction=cycle, pruning_fraction=shrink)
    times = timetable(config, total, tried)
    trials = 2 * times.trials * tried
    cycles = times.cycles * times.sampling_steps
    assert times.start_step + 1 + trials + cycles + times.hybrid_steps <= total
    assert trials <= cycle * total / 2
    assert 1 <= times.cycles <= 10


def test_the_method_tells_the_optimizer_time_and_loss() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    units = Units((), (plain_group("0", 4, ("0.weight", "0.bias")),))
    method = HESSOCRICMethod(HESSOCRICConfig(cycle_fraction=0.4, cycles=5))
    assert method.needs_loss
    method.prepare(net, units)
    recipe = Recipe(epochs=10, optimizer={"lr": 0.1})
    (phase,) = method.phases(recipe)
    optimizer = method.optimizer(net, phase, recipe)
    method.after_backward(net, StepContext(phase, 0, 0, 10, torch.tensor(2.0)))
    found = {k: optimizer.units[k] for k in ("start_step", "trials", "cycles", "sampling_steps")}
    assert found == {"start_step": 10, "trials": 3, "cycles": 5, "sampling_steps": 6}
    assert optimizer._loss == 2.0
    stats = EpochStats(0, 0, {})
    assert method.end_epoch(net, stats) is False
    assert stats.logged["cycles"] == stats.logged["group_sparsity"] == 0.0
    quiet = HESSOCRICConfig(criteria={"magnitude": 1.0})
    assert timetable(quiet, 1000, 3).trials == 0


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="more than the whole training"):
        HESSOCRICConfig(start_fraction=0.8, pruning_fraction=0.1)
    with pytest.raises(ValueError, match="all weights but that of loss are 0"):
        HESSOCRICConfig(criteria={"magnitude": 0.0, "loss": 1.0})


class _KilledAt(Batches):
    """Batches that end the process before a step of the training."""

    def __init__(self, step: int) -> None:
        self.left = step

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epoch(epoch, start_step):
            if self.left == 0:
                raise Stopped
            self.left -= 1
            yield batch


def _through_the_loop(folder: Path, kills: Sequence[int]) -> Job:
    recipe = RECIPE.model_copy(update={"epochs": 24, "checkpoint_steps": 1})
    config = HESSOCRICConfig(cycle_fraction=0.5, cycles=3)
    for kill in (*kills, -1):
        made = make_job("hesso_cric", _KilledAt(kill))
        made = replace(made, recipe=recipe, method=HESSOCRICMethod(config))
        if kill < 0:
            fit(made, CheckpointFolder(folder, "x"), Recorder())
            return made
        with pytest.raises(Stopped):
            fit(made, CheckpointFolder(folder, "x"), Recorder())
    raise AssertionError


def test_a_training_killed_in_trials_and_cycles_ends_with_the_same_bits(tmp_path: Path) -> None:
    """72 steps: 7 of plain training, one to begin, 14 of trials, 21 in cycles, 7 of shrinking."""
    whole = _through_the_loop(tmp_path / "whole", ())
    stepped = whole.method.stepped
    assert stepped.units["excess"][0].abs().min() > 0
    assert stepped.units["stage"] == "after"
    killed = _through_the_loop(tmp_path / "killed", (9, 4, 12, 9))
    assert same(killed.model, whole.model)
    zeros = torch.cat(list(whole.method.saliency(whole.model, whole.units).values())) == 0
    assert int(zeros.sum()) == len(zeros) // 2
