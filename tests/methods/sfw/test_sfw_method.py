"""SFW as a method: sizes of the sets, preparation, learned initialisation, schedule, saliency."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from methods.sfw import SFW, SFWConfig, SFWMethod, feasible_sets
from methods.sfw.constraints import ConvexSet, KSparsePolytope, LpBall, Unconstrained
from methods.sfw.init_norms import init_norms
from methods.sfw.loss_trend import LossTrendSchedule
from pipeline.training.phases import EpochStats
from pipeline.training.recipe import Recipe, ScheduleConfig
from pipeline.training.schedules import EpochSchedule
from tests.methods.sfw.sfw_toys import (
    PHASE,
    RECIPE,
    UNITS,
    OneShot,
    ToyBatches,
    net,
    prepared,
    toy_batches,
)


def test_default_sizes_of_a_network() -> None:
    sets = feasible_sets(net(), SFWConfig(), UNITS.weights)
    conv, norm = sets["0.weight"], sets["1.weight"]
    assert conv == KSparsePolytope.of_diameter(10, 2 * 15 * math.sqrt(36 / (3 * 9)))
    assert norm == KSparsePolytope.of_diameter(4, 2 * 15 * 2.0)
    assert sets["1.bias"] == KSparsePolytope.of_diameter(4, 30.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "radius", "size": 3}, KSparsePolytope(10, 3.0)),
        ({"mode": "diameter", "size": 3}, KSparsePolytope.of_diameter(10, 3.0)),
        ({"mode": "radius", "size": 3, "k_frac": 0.5}, KSparsePolytope(18, 3.0)),
        ({"mode": "radius", "size": 3, "constraint": "l2"}, LpBall(2.0, 36, 3.0)),
        ({"mode": "diameter", "size": 3, "constraint": "linf"}, LpBall(math.inf, 36, 0.25)),
        ({"constraint": "l1"}, LpBall(1.0, 36, 15 * math.sqrt(4 / 3))),
        ({"constraint": "none"}, Unconstrained()),
    ],
)
def test_sizes_by_mode(settings: dict[str, Any], expected: ConvexSet) -> None:
    found = feasible_sets(net(), SFWConfig(**settings), UNITS.weights)["0.weight"]
    assert found.plain() == pytest.approx(expected.plain())


def test_weights_only_leaves_the_rest_unconstrained() -> None:
    sets = feasible_sets(net(), SFWConfig(constrain="weights"), UNITS.weights)
    bound = [name for name, s in sets.items() if not isinstance(s, Unconstrained)]
    assert bound == list(UNITS.weights)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"methods\.sfw\.k_frac.*'0\.bias'"):
        feasible_sets(net(), SFWConfig(k=None), UNITS.weights)
    with pytest.raises(ValueError, match="k or k_frac"):
        SFWConfig(k=None, k_frac=None)


def test_prepare_changes_only_infeasible_tensors_and_no_random_state() -> None:
    for source in ("closed_form", "measured", "measured_by_shape"):
        method, model, before = SFWMethod(SFWConfig(init_norms=source)), net(), net()
        state = torch.get_rng_state()
        method.prepare(model, UNITS)
        assert torch.equal(torch.get_rng_state(), state)
        for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
            assert torch.equal(p, q) == bool(method.sets[name].contains(q, 0.0))
            assert method.sets[name].contains(p, 1e-6)


def test_measured_norms_agree_with_the_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 64, 3, groups=2), nn.BatchNorm2d(64), nn.Linear(30, 200), nn.Embedding(50, 9)
    )
    closed, measured = init_norms(model, "closed_form"), init_norms(model, "measured")
    assert closed == pytest.approx(measured, rel=0.02)
    assert closed["1.weight"] == 8.0
    assert closed["1.bias"] == 1.0
    assert closed["2.weight"] == pytest.approx(math.sqrt(200 / 3))


def test_norms_by_shape_collide_as_in_the_released_code() -> None:
    """A BatchNorm scale takes the value of its shift; so does a bias of that length."""
    norms = init_norms(net(), "measured_by_shape")
    assert norms["0.bias"] == norms["1.weight"] == norms["1.bias"] == 1.0
    wide = nn.Sequential(nn.Conv2d(3, 256, 3), nn.BatchNorm2d(256))
    sets = feasible_sets(wide, SFWConfig(init_norms="measured_by_shape"), ())
    shrunk = sets["1.weight"].shift_inside(torch.ones(256))
    assert shrunk[0].item() == pytest.approx(0.203, abs=5e-4)
    assert feasible_sets(wide, SFWConfig(), ())["1.weight"].contains(torch.ones(256))


def test_layers_without_formula_or_reset() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((4,), 3.0))
            self.empty = nn.Parameter(torch.zeros(2))

    norms = init_norms(nn.Sequential(Scale(), nn.PReLU(9)), "closed_form")
    assert norms == pytest.approx({"0.factor": 6.0, "0.empty": 1.0, "1.weight": 0.75})


@pytest.mark.parametrize("reproject", [True, False])
def test_learned_initialisation_is_feasible_unless_told_otherwise(reproject: bool) -> None:
    settings = {"mode": "diameter", "size": 1.4, "k": 2, "k_frac": None, "sfw_init": True}
    method, model = (
        SFWMethod(SFWConfig(**settings, sfw_init_iterations=60, sfw_init_reproject=reproject)),
        net(),
    )
    start = copy.deepcopy(model)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    method.prepare(model, UNITS, OneShot(toy_batches(5)))
    inside = [bool(method.sets[n].contains(p, 1e-6)) for n, p in model.named_parameters()]
    assert all(inside) == reproject
    assert all(m.training for m in model.modules())
    assert model[1].track_running_stats
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    plain = SFWMethod(SFWConfig(**{**settings, "sfw_init": False}))
    plain.prepare(start, UNITS)
    assert not torch.equal(start[0].weight, model[0].weight)


def test_learned_initialisation_needstoy_batches() -> None:
    method = SFWMethod(SFWConfig(sfw_init=True))
    with pytest.raises(ValueError, match=r"methods\.sfw\.sfw_init"):
        method.prepare(net(), UNITS)
    with pytest.raises(ValueError, match="no training batches"):
        method.prepare(net(), UNITS, ToyBatches([]))


def test_learned_initialisation_with_unconstrained_tensors() -> None:
    method, model = (
        SFWMethod(SFWConfig(constrain="weights", sfw_init=True, sfw_init_iterations=3)),
        net(),
    )
    method.prepare(model, UNITS, ToyBatches(toy_batches(2)))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_schedule_resumes_with_its_history() -> None:
    def made() -> tuple[torch.optim.Optimizer, LossTrendSchedule]:
        method, model = prepared(schedule="dynamic_change")
        optimizer = method.optimizer(model, PHASE, RECIPE)
        schedule = method.schedule(optimizer, PHASE, Recipe(epochs=60))
        assert isinstance(schedule, LossTrendSchedule)
        return optimizer, schedule

    losses = [1.0 + 0.1 * math.sin(e) for e in range(60)]
    (optimizer, straight), (twin, resumed) = made(), made()
    rates: list[float] = []
    for epoch, loss in enumerate(losses):
        straight.step(EpochStats(epoch, epoch, {"loss": loss, "last_loss": -loss}))
        if epoch == 27:
            resumed.load_state_dict(straight.state_dict())
        elif epoch > 27:
            resumed.step(EpochStats(epoch, epoch, {"loss": loss, "last_loss": -loss}))
            assert twin.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        rates.append(optimizer.param_groups[-1]["lr"])
    assert len(set(rates)) > 4


def test_schedule_entered_late_has_the_divisions_behind_it() -> None:
    optimizer = SFW([nn.Parameter(torch.zeros(1))])
    LossTrendSchedule(optimizer, "dynamic_change", 90, start=45).step(
        EpochStats(0, 0, {"loss": 1.0})
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_recipe_may_keep_the_schedule() -> None:
    method, model = prepared(schedule="recipe")
    optimizer = method.optimizer(model, PHASE, RECIPE)
    recipe = Recipe(epochs=3, schedule=ScheduleConfig(name="cosine"))
    assert isinstance(method.schedule(optimizer, PHASE, recipe), EpochSchedule)


def test_saliency_is_the_magnitude_of_layer_weights() -> None:
    method, model = prepared()
    saliency = method.saliency(model, UNITS)
    assert list(saliency) == list(UNITS.weights)
    assert torch.equal(saliency["4.weight"], model[4].weight.detach().abs())
