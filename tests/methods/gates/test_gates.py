"""Channel gates: their positions, invariants and state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.gates import Gates, GatesConfig, gated_output, regulariser
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.methods.gates.gates_traces import NET_UNITS, prepared, random_net
from tests.pipeline.training import toy

PHASE = Phase("gates", 2)
AT = StepContext(PHASE, 0, 0, 1)
RECIPE = Recipe(epochs=2)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 3, 3, dtype=torch.float64)


def train(net: nn.Module, method: Gates, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """A few steps of the loop, each with its own batch."""
    net.train()
    for step in steps:
        torch.manual_seed(step)
        loss = cross_entropy(net(images()), torch.arange(4) % 3) + method.penalty(net)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        method.after_step(net, AT)


# --- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["stem.conv", "conv1", "left", "right", "point", "hidden"])
def test_a_zero_gate_is_a_removed_channel(name: str, training: bool) -> None:
    x = images()
    dense, changed = random_net().train(training)(x), False
    for channel in range(NET_UNITS.by_name()[name].size):
        gated, plain = random_net().train(training), random_net().train(training)
        method = prepared(gated, groups="all", after_depthwise=True)
        with torch.no_grad():
            method.gates[name][channel] = 0.0
        output = gated(x)
        keep = torch.arange(method.gates[name].numel()) != channel
        enforce(PruningPlan(Granularity.STRUCTURED, {name: keep}), plain, NET_UNITS)
        torch.testing.assert_close(output, plain(x), atol=1e-12, rtol=0)
        changed |= not torch.allclose(output, dense, atol=1e-6)
    assert changed


def test_only_gates_learn_and_no_gradient_is_computed_for_weights() -> None:
    net = random_net()
    before = {k: v.clone() for k, v in net.named_parameters()}
    method = prepared(net, groups="all")
    train(net, method, method.optimizer(net, PHASE, RECIPE), range(3))
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[k], p) for k, p in net.named_parameters())
    assert all(bool((g != 1).any()) for g in method.gates.values())


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-3, 2.0),
    balance=st.floats(0.0, 50.0),
    mean=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_gates_stay_between_zero_and_one(lr: float, balance: float, mean: float, seed: int) -> None:
    net = random_net(seed)
    method = prepared(net, lr=lr, balance=balance, target_gate_mean=mean)
    train(net, method, method.optimizer(net, PHASE, RECIPE), range(seed, seed + 3))
    for scores in method.saliency(net, NET_UNITS).values():
        assert bool(((scores >= 0) & (scores <= 1)).all())


def test_the_mean_gate_goes_to_its_target() -> None:
    net = random_net()
    method = prepared(net, balance=50.0, target_gate_mean=0.3, lr=0.05)
    train(net, method, method.optimizer(net, PHASE, RECIPE), range(60))
    stats = EpochStats(0, 0, {})
    assert method.end_epoch(net, stats) is False
    assert stats.logged["gate_mean"] == pytest.approx(0.3, abs=0.03)
    method.load_state_dict(
        {"gates": {n: torch.tensor([0.0, 1.0] + [0.25] * (len(g) - 2), dtype=g.dtype)
                   for n, g in method.gates.items()}}
    )  # fmt: skip
    method.end_epoch(net, stats)
    total = sum(len(g) for g in method.gates.values())
    assert stats.logged["fraction_nonzero"] == pytest.approx(1 - 5 / total)
    assert stats.logged["fraction_one"] == pytest.approx(5 / total)


def test_the_learning_rate_stays_constant_whatever_the_recipe() -> None:
    net = random_net()
    method = prepared(net, lr=0.02)
    recipe = Recipe.model_validate(
        {"epochs": 4, "schedule": {"name": "multistep", "milestones": [1]}}
    )
    optimizer = method.optimizer(net, PHASE, recipe)
    schedule = method.schedule(optimizer, PHASE, recipe)
    schedule.step(EpochStats(0, 0, {"loss": 1.0}))
    schedule.step(EpochStats(1, 1, {"loss": 1.0}))
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_release_leaves_the_plain_model() -> None:
    net = random_net()
    net.stem.conv.weight.requires_grad_(False)
    keys, x = list(net.state_dict()), images()
    net.eval()
    before = net(x)
    method = prepared(net, groups="all")
    assert torch.equal(net(x), before)
    with torch.no_grad():
        method.gates["conv1"].fill_(0.5)
    assert not torch.equal(net(x), before)
    method.release(net)
    assert torch.equal(net(x), before)
    assert list(net.state_dict()) == keys
    assert all(not m._forward_hooks for m in net.modules())
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.conv.weight"]
    assert method.saliency(net, NET_UNITS)["conv1"].tolist() == [0.5] * 5


# --- state ------------------------------------------------------------------------------------


def test_resuming_gives_the_same_bits() -> None:
    straight = random_net()
    method = prepared(straight)
    train(straight, method, method.optimizer(straight, PHASE, RECIPE), range(6))

    first = random_net()
    before = prepared(first)
    optimizer = before.optimizer(first, PHASE, RECIPE)
    train(first, before, optimizer, range(3))
    second = random_net(seed=1)
    after = prepared(second)
    after.load_state_dict(before.state_dict())
    second.load_state_dict(first.state_dict())
    resumed = after.optimizer(second, PHASE, RECIPE)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, after, resumed, range(3, 6))

    for name, gate in method.gates.items():
        assert torch.equal(gate, after.gates[name])
    for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_state_alone_gives_the_saliency() -> None:
    net = random_net()
    method = prepared(net)
    train(net, method, method.optimizer(net, PHASE, RECIPE), range(2))
    stored = method.state_dict()
    later = prepared(random_net())
    later.load_state_dict(stored)
    scores = later.saliency(random_net(), NET_UNITS)
    assert {n: s.tolist() for n, s in scores.items()} == {
        n: g.tolist() for n, g in stored["gates"].items()
    }
    train(net, method, method.optimizer(net, PHASE, RECIPE), range(2))
    assert any(not torch.equal(stored["gates"][n], g) for n, g in method.gates.items())


def test_a_state_of_another_configuration_is_refused() -> None:
    stored = prepared(random_net(), groups="all").state_dict()
    with pytest.raises(ValueError, match=r"another methods\.gates block"):
        prepared(random_net()).load_state_dict(stored)


def test_a_gate_keeps_the_precision_of_the_activation() -> None:
    piece = NET_UNITS.by_name()["conv1"].slices[0]
    activation = torch.ones(2, 5, 3, 3, dtype=torch.bfloat16)
    assert gated_output(activation, torch.ones(5), piece, 1).dtype == torch.bfloat16


def test_all_gates_count_alike_in_the_mean() -> None:
    gates = [torch.ones(3), torch.zeros(1)]
    assert math.isclose(float(regulariser(gates, 1.0, 0.5)), 0.0625)


class Killed(toy.Recorder):
    """Aborts the training in its third epoch."""

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        super().metrics(values, epoch=epoch, step=step)
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_killed_training_ends_with_the_same_gates(tmp_path: Path) -> None:
    units = trace_units(toy.network().eval(), torch.zeros(2, 6), never_prune=("4",))

    def job() -> Job:
        return toy.job(Gates(GatesConfig(lr=0.1, balance=5.0)), units=units)

    straight = job()
    _, observer, curve = toy.train(tmp_path / "straight", straight)
    killed, resumed = job(), job()
    with pytest.raises(KeyboardInterrupt):
        fit(killed, CheckpointFolder(tmp_path / "killed", "x"), Killed())
    _, _, curve_resumed = toy.train(tmp_path / "killed", resumed)

    assert curve_resumed == curve
    assert {"method/gate_mean", "method/fraction_nonzero"} <= set(observer.rows[0][2])
    assert toy.same(straight.model, resumed.model)
    gates = straight.method.saliency(straight.model, units)
    again = resumed.method.saliency(resumed.model, units)
    assert list(gates) == ["0"]
    assert torch.equal(gates["0"], again["0"])
    assert bool((gates["0"] < 1).any())
    assert torch.equal(straight.model[0].weight, toy.network()[0].weight)  # type: ignore[index]
