"""Further settings of DHSPG: start of the projection, permanent zeros, decay per row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from methods.dhspg import DHSPG, DHSPGConfig, DHSPGMethod
from pipeline.training.phases import StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Units
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import direction, plain_group, sgd


def _still(named: dict[str, nn.Parameter], optimizer: DHSPG) -> None:
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_row_decay_spares_what_its_param_group_does_not_decay() -> None:
    """A row of length 5, lr * decay 0.1: 3 -> 3 - 0.1 * 3 / 5; a bias of 4 without decay is 4."""
    named = {"w": nn.Parameter(torch.tensor([[3.0]])), "b": nn.Parameter(torch.tensor([4.0]))}
    params = [
        {"params": [named["w"]], "weight_decay": 1.0},
        {"params": [named["b"]], "weight_decay": 0.0},
    ]
    config = DHSPGConfig(weight_decay_type="l1_norm")
    rows = Rows(named, [plain_group("g", 1, ("w", "b"))])
    optimizer = DHSPG(params, rows, direction("adamw", 0.1, decay=1.0), config)
    optimizer.schedule(100, 0)
    _still(named, optimizer)
    assert named["b"].item() == 4.0
    assert named["w"].item() == pytest.approx(2.94)


def test_row_decay_enters_the_projection() -> None:
    """x = 1, lr * penalty 0.3, lr * decay 0.3: <x^, x> = 0.4, below epsilon 0.5 only with both."""
    named = {"w": nn.Parameter(torch.ones(2, 1, dtype=torch.float64))}
    rows = Rows(named, [plain_group("g", 2, ("w",))])
    config = DHSPGConfig(weight_decay_type="l1_norm", penalty=3.0, epsilon=0.5)
    optimizer = DHSPG(named.values(), rows, direction("adamw", 0.1, decay=3.0), config)
    _still(named, optimizer)
    assert sorted(named["w"].flatten().tolist()) == pytest.approx([0.0, 0.7])


def _falling(fixed: bool) -> tuple[dict[str, nn.Parameter], DHSPG]:
    """Four channels, one zero; all but one are penalised with lr * penalty = 2, which flips the
    sign of a channel of norm 1 in each step. Partition in step 2, projection from step 4 on."""
    named = {"w": nn.Parameter(torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64))}
    rows = Rows(named, [plain_group("g", 4, ("w",))])
    config = DHSPGConfig(penalty=20.0, target_group_sparsity=0.7, fixed_zero_groups=fixed)
    optimizer = DHSPG(named.values(), rows, sgd(0.1), config)
    optimizer.schedule(1, 0, 4)
    return named, optimizer


def test_projection_may_begin_after_the_partition() -> None:
    named, optimizer = _falling(fixed=True)
    zeros = []
    for _ in range(5):
        _still(named, optimizer)
        zeros.append(int((named["w"] == 0).sum()))
    assert int(optimizer.units["penalized"].sum()) == 3
    assert zeros == [1, 1, 1, 3, 3]


@pytest.mark.parametrize("fixed", [False, True])
def test_zero_channels_may_come_back_until_the_projection_has_begun(fixed: bool) -> None:
    named, optimizer = _falling(fixed)
    assert (optimizer.stays_zero() is None) is not fixed
    zero = []
    for _ in range(4):
        with torch.no_grad():
            named["w"][0] = 0.0
        for p in named.values():
            p.grad = torch.zeros_like(p)
        named["w"].grad[0] = -1.0
        optimizer.step()
        zero.append(named["w"][0].item() == 0.0)
    assert zero == [fixed] * 4
    with torch.no_grad():
        named["w"][0] = 0.0
    optimizer.step()
    assert named["w"][0].item() == 0.0  # from step 5 on
    assert optimizer.stays_zero() is not None


def test_settings_that_came_later_are_absent_from_records_at_their_default() -> None:
    later = {"project_epochs", "project_fraction", "fixed_zero_groups"}
    assert not later & DHSPGConfig().model_dump(mode="json").keys()
    assert DHSPGConfig(project_epochs=3).model_dump(mode="json")["project_epochs"] == 3


@pytest.mark.parametrize(
    ("settings", "step"),
    [({}, 10), ({"project_epochs": 3}, 30), ({"project_fraction": 0.5}, 50)],
)
def test_the_method_says_when_projection_begins(settings: dict[str, Any], step: int) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    method = DHSPGMethod(DHSPGConfig(start_fraction=0.1, **settings))
    method.prepare(net, Units((), (plain_group("0", 4, ("0.weight", "0.bias")),)))
    recipe = Recipe(epochs=10)
    (phase,) = method.phases(recipe)
    optimizer = method.optimizer(net, phase, recipe)
    method.after_backward(net, StepContext(phase, 0, 0, steps_per_epoch=10))
    assert optimizer.units["project_step"] == step
