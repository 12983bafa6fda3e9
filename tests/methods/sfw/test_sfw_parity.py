"""SFW against the recorded numbers of its authors' code: weights to 1e-11, K and lr exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from methods.sfw import SFW
from methods.sfw.constraints import KSparsePolytope, LpBall, polytope_k
from methods.sfw.learned_scale import learn_scales
from methods.sfw.loss_trend import LossTrendSchedule
from pipeline.training.phases import EpochStats
from tests.methods.sfw.sfw_toys import ToyBatches
from tests.methods.sfw.sfw_traces import close, load, set_of, vector

OPEN_LOOP = load("optimizer_open_loop")
CASES = load("constraint_cases")
SCHEDULES = load("lr_schedule")
INIT = load("gradinit_trace")


def _label(config: dict[str, Any]) -> str:
    return f"{config['constraint']}-{config['rescale']}-m{config['momentum']}-lr{config['lr']}"


@pytest.mark.parametrize("config", OPEN_LOOP["configs"], ids=_label)
def test_twenty_steps_on_fixed_gradients(config: dict[str, Any]) -> None:
    shapes = OPEN_LOOP["shapes"]
    weights, groups = {}, []
    for name, facts in config["constraint_per_tensor"].items():
        feasible = set_of(facts)
        assert feasible.diameter == pytest.approx(facts["diameter"], rel=1e-14)
        start = vector(OPEN_LOOP["initial_weights"][name], shapes[name])
        weights[name] = nn.Parameter(feasible.shift_inside(start))
        close(weights[name], config["weights_after_make_feasible"][name])
        groups.append({"params": [weights[name]], "constraint": feasible.plain()})
    rescale = config["rescale"] or "none"
    optimizer = SFW(groups, config["lr"], config["momentum"], rescale)
    for t, gradients in enumerate(OPEN_LOOP["gradients"]):
        for name, w in weights.items():
            w.grad = vector(gradients[name], shapes[name])
        optimizer.step()
        for name, expected in config["steps"].get(str(t), {"weights": {}})["weights"].items():
            close(weights[name], expected)
    for name, w in weights.items():
        buffer = config["final_momentum_buffer"][name]
        if buffer is None:
            assert not optimizer.state[w]
        else:
            close(optimizer.state[w]["momentum"], buffer)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: f"{c['op']}-{c['case']}")
def test_constraint_cases(case: dict[str, Any]) -> None:
    if case.get("tie_dependent"):
        x, y = vector(case["x"]), set_of(case).lmo(vector(case["x"]))
        assert torch.dot(x, y) == pytest.approx(float(torch.dot(x, vector(case["y"]))), rel=1e-14)
        return
    operation = {"euclidean_project": "euclidean_projection"}.get(case["op"], case["op"])
    close(getattr(set_of(case), operation)(vector(case["x"])), case["y"])


def test_radius_and_diameter_convert_both_ways() -> None:
    for facts in CASES["radius_diameter_conversion"]:
        n = facts["n"]
        if facts["kind"] == "k_sparse":
            k = polytope_k(n, facts["K_requested"], None)
            assert k == facts["K_used"]
            given, wanted = KSparsePolytope(k, 2.0), KSparsePolytope.of_diameter(k, 2.0)
        else:
            p = float(facts["p"])
            given, wanted = LpBall(p, n, 2.0), LpBall.of_diameter(p, n, 2.0)
        assert given.diameter == pytest.approx(facts["diameter_out"], rel=1e-14)
        assert wanted.radius == pytest.approx(facts["radius_out"], rel=1e-14)


def test_k_rule() -> None:
    for facts in CASES["K_used"]:
        assert polytope_k(facts["n"], facts["K"], facts["K_frac"]) == facts["K_used"]


@pytest.mark.parametrize(
    "case", CASES["degenerate_steps"], ids=lambda c: f"{c['case']}-{c['rescale']}"
)
def test_degenerate_steps(case: dict[str, Any]) -> None:
    w = nn.Parameter(vector(case["w"]))
    w.grad = vector(case["g"])
    plain = KSparsePolytope(case["K"], case["radius"]).plain()
    groups = [{"params": [w], "constraint": plain}]
    SFW(groups, case["lr"], 0.0, case["rescale"] or "none").step()
    close(w, case["w_after"])


def _rates(scheme: str, losses: list[float], epochs: int, lr: float, key: str) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = LossTrendSchedule(optimizer, scheme, epochs, key)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        train = {"loss": losses[epoch], "last_loss": losses[epoch]}
        train["loss" if key == "last_loss" else "last_loss"] = 9.0
        schedule.step(EpochStats(epoch, epoch, train))
    return rates


@pytest.mark.parametrize("key", ["loss", "last_loss"])
def test_learning_rates_exactly(key: str) -> None:
    for run in SCHEDULES["runs"]:
        scheme = "keep" if run["scheme"] == "no_such_scheme" else run["scheme"]
        losses = SCHEDULES["last_batch_loss"][run["losses"]]
        rates = _rates(scheme, losses, run["epochs"], run["lr0"], key)
        assert rates == run["lr_during_epoch"], (run["scheme"], run["losses"], run["epochs"])


class _Net(nn.Sequential):
    """The recorded networks: an MLP, or convolution, BatchNorm, ReLU, linear."""

    def __init__(self, run: dict[str, Any]) -> None:
        if len(run["X_shape"]) == 2:
            super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        else:
            conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
            super().__init__(conv, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


@pytest.mark.parametrize("run", INIT["runs"], ids=["mlp", "conv-bn"])
def test_learned_scales(run: dict[str, Any]) -> None:
    x, y, size = (
        vector(sum(run["X"], []), run["X_shape"]),
        torch.tensor(run["Y"]),
        run["batch_size"],
    )
    batches = list(zip(x.split(size), y.split(size), strict=True))
    sets = {name: set_of(facts) for name, facts in run["constraints"].items()}
    for iterations in (1, 30, run["iterations"]):
        model = _Net(run).double()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(vector(run["start_weights"][name], list(p.shape)))
        scales = learn_scales(model, sets, ToyBatches(batches), run["lr"], iterations)
        assert scales == pytest.approx(run["alpha_at"][str(iterations - 1)], rel=1e-11)
    for name, p in model.named_parameters():
        close(p, run["final_weights"][name])
        assert bool(sets[name].contains(p)) == run["feasibility_after"][name]["feasible"]
