"""Learning rates by epoch, against worked values and against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedules

from pipeline.training.phases import EpochStats
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.schedules import (
    PlateauSchedule,
    learning_rate,
    make_optimizer,
    make_schedule,
    parameter_groups,
)


def rates(config: ScheduleConfig, base: float = 0.1, epochs: int = 12) -> list[float]:
    return [learning_rate(config, base, e, epochs) for e in range(epochs)]


def torch_rates(make: object, base: float = 0.1, epochs: int = 12) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = make(optimizer)  # type: ignore[operator]
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (ScheduleConfig(name="step", step_size=3), lambda o: torch_schedules.StepLR(o, 3)),
        (
            ScheduleConfig(name="multistep", milestones=(4, 7)),
            lambda o: torch_schedules.MultiStepLR(o, [4, 7]),
        ),
        (
            ScheduleConfig(name="cosine", min_lr=0.01),
            lambda o: torch_schedules.CosineAnnealingLR(o, 12, 0.01),
        ),
        (
            ScheduleConfig(name="warm_restarts", period=2, period_factor=2),
            lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 2, 2),
        ),
        (
            ScheduleConfig(name="cyclic", min_lr=1e-5, step_up=2, step_down=4),
            lambda o: torch_schedules.CyclicLR(o, 1e-5, 0.1, 2, 4, cycle_momentum=False),
        ),
    ],
)
def test_equals_torch(config: ScheduleConfig, make: object) -> None:
    assert rates(config) == pytest.approx(torch_rates(make), rel=1e-9)


def test_the_drop_comes_at_the_milestone_not_before() -> None:
    # epochs 0..79 at lr: the seeds that stepped at the start of the epoch dropped one too early
    config = ScheduleConfig(name="multistep", milestones=(80, 120))
    at = [learning_rate(config, 0.1, e, 160) for e in (0, 79, 80, 119, 120, 159)]
    assert at == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_linear_warm_up_then_the_schedule() -> None:
    config = ScheduleConfig(name="multistep", milestones=(5,), lr_warmup=3)
    assert rates(config, base=0.4, epochs=6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.04])


def test_a_phase_enters_the_schedule_where_it_says() -> None:
    recipe = Recipe(epochs=12, schedule=ScheduleConfig(name="multistep", milestones=(4, 7)))
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make_schedule(optimizer, recipe, start_epoch=6)
    seen = []
    for _ in range(3):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step(EpochStats(0, 0, {}))
    assert seen == pytest.approx([0.01, 0.001, 0.001])
    again = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    restored = make_schedule(again, recipe)
    restored.load_state_dict(schedule.state_dict())
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_plateau_follows_the_validation_loss_and_resumes() -> None:
    config = ScheduleConfig(name="plateau", patience=1, gamma=0.5)

    def run(losses: list[float], schedule: PlateauSchedule) -> float:
        for loss in losses:
            schedule.step(EpochStats(0, 0, {"loss": 9.0}, {"loss": loss}))
        return float(optimizer.param_groups[0]["lr"])

    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = PlateauSchedule(optimizer, config)
    assert run([1.0, 0.9, 0.95], schedule) == pytest.approx(0.1)
    state = schedule.state_dict()
    assert run([0.95], schedule) == pytest.approx(0.05)
    optimizer.param_groups[0]["lr"] = 0.1
    resumed = PlateauSchedule(optimizer, config)
    resumed.load_state_dict(state)
    assert run([0.95], resumed) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adadelta"])
def test_every_optimizer_moves_the_weights(name: str) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    config = OptimizerConfig(name=name, lr=0.1)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, Recipe(epochs=1, optimizer=config))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_decay_spares_norm_bias_and_depthwise() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
    )
    groups = parameter_groups(model, OptimizerConfig(decay_norm_and_bias=False))
    assert [len(g["params"]) for g in groups] == [1, 4]
    assert groups[0]["params"][0] is model[1].weight
    assert groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_optimizers_take_the_same_step_up_to_rounding(name: str) -> None:
    found = []
    for fused in (False, True):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        config = OptimizerConfig(name=name, lr=0.1, fused=fused)
        optimizer = make_optimizer(model, Recipe(epochs=1, optimizer=config))
        for _ in range(3):
            model.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        found.append(model.weight.detach())
    assert torch.allclose(*found, atol=1e-5)


def test_a_fused_optimizer_is_recorded_only_where_it_is_asked_for() -> None:
    assert "fused" not in OptimizerConfig().model_dump()
    assert OptimizerConfig(fused=True).model_dump()["fused"] is True
    with pytest.raises(ValueError, match="fused: true: torch has no fused adadelta"):
        OptimizerConfig(name="adadelta", fused=True)
